use opentelemetry::baggage::Baggage;

use super::*;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn parent_of(text: &str) -> Option<String> {
    let context = extract_map(&map(&[("traceparent", text)]));
    inject_map(&context).remove("traceparent")
}

#[test]
fn ids_pass_through_every_carrier_untouched() {
    let pairs = [
        ("traceparent", PARENT),
        ("tracestate", "vendor=a:b,other=1"),
        ("baggage", "tenant=acme,user=J%C3%BCrgen"),
    ];
    let expected: BTreeMap<_, _> = map(&pairs).into_iter().collect();

    let context = extract_map(&map(&pairs));
    assert_eq!(inject_map(&context), expected);

    let json = inject_json(&context).unwrap();
    assert_eq!(inject_map(&extract_json(&json)), expected);

    let mut headers = HeaderMap::new();
    inject_headers(&context, &mut headers);
    assert_eq!(inject_map(&extract_headers(&headers)), expected);
    assert!(extract_headers(&headers).span().span_context().is_remote());
}

#[test]
fn short_json_equals_long_json() {
    let parent = ("traceparent", PARENT);
    let unsampled = (
        "traceparent",
        "00-00000000000000000000000000000001-000000000000000a-02",
    );
    for pairs in [
        &[parent][..],
        &[unsampled],
        &[parent, ("tracestate", "vendor=1")],
        &[parent, ("baggage", "tenant=acme")],
        &[("baggage", "tenant=acme")],
        &[],
    ] {
        let context = extract_map(&map(pairs));
        let at_length = inject_value(&context).map(|value| value.to_string());
        assert_eq!(inject_json(&context), at_length, "{pairs:?}");
        let expected: BTreeMap<_, _> = map(pairs).into_iter().collect();
        assert_eq!(inject_map(&context), expected);
    }
}

#[test]
fn a_json_carrier_may_be_an_object_a_string_or_a_whole_entry() {
    let object = format!(r#"{{"traceparent":"{PARENT}"}}"#);
    let string = serde_json::to_string(&object).unwrap();
    let carriers = [
        object.clone(),
        string.clone(),
        format!(r#"{{"task_id":"t","_trace_context":{object}}}"#),
        format!(r#"{{"task_id":"t","_trace_context":{string}}}"#),
    ];
    for carrier in carriers {
        assert_eq!(
            inject_map(&extract_json(&carrier)).get("traceparent").unwrap(),
            PARENT,
            "{carrier}"
        );
    }
    let hash = map(&[("task_id", "t"), ("_trace_context", &object)]);
    assert_eq!(inject_map(&extract_map(&hash))["traceparent"], PARENT);
}

#[test]
fn a_malformed_traceparent_starts_a_new_trace() {
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    let span_id = "b7ad6b7169203331";
    let malformed = [
        String::new(),
        "-".into(),
        "garbage".into(),
        "00".into(),
        format!("00-{trace_id}-{span_id}"),
        format!("00-{trace_id}-{span_id}-"),
        format!("00-{trace_id}-{span_id}-1"),
        format!("00-{trace_id}-{span_id}-001"),
        format!("00-{trace_id}-{span_id}-01-"),
        format!("00-{trace_id}-{span_id}-01-more"),
        format!("0-{trace_id}-{span_id}-01"),
        format!("ff-{trace_id}-{span_id}-01"),
        format!("0g-{trace_id}-{span_id}-01"),
        format!("FF-{trace_id}-{span_id}-01"),
        format!("01-{trace_id}-{span_id}-01more"),
        format!("00-{}-{span_id}-01", trace_id.to_uppercase()),
        format!("00-{trace_id}-{}-01", span_id.to_uppercase()),
        format!("00-{trace_id}-{span_id}-0A"),
        format!("00-{trace_id}-{span_id}-xx"),
        format!("00-+{}-{span_id}-01", &trace_id[1..]),
        format!("00-{}-{span_id}-01", &trace_id[1..]),
        format!("00-{trace_id}0-{}-01", &span_id[1..]),
        format!("00-{}-{span_id}-01", "0".repeat(32)),
        format!("00-{trace_id}-{}-01", "0".repeat(16)),
        format!("00_{trace_id}_{span_id}_01"),
        format!("00-{trace_id}-{span_id}-01\0"),
        format!("00-{}é-{span_id}-01", &trace_id[2..]),
        PARENT.repeat(1000),
    ];
    for text in malformed {
        assert_eq!(parent_of(&text), None, "{text:?}");
    }
}

#[test]
fn later_versions_and_unknown_flags_are_read() {
    let with = |version: &str, rest: &str| parent_of(&format!("{version}{}{rest}", &PARENT[2..53]));
    assert_eq!(with("00", "01").as_deref(), Some(PARENT));
    assert_eq!(with("cc", "01-what-the-future-brings").as_deref(), Some(PARENT));
    assert_eq!(with("01", "ff"), Some(PARENT.replace("-01", "-03")));
    assert_eq!(with("00", "00"), Some(PARENT.replace("-01", "-00")));
    assert_eq!(parent_of(&format!(" {PARENT}\t")).as_deref(), Some(PARENT));
}

#[test]
fn random_bytes_do_not_make_extraction_fail() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..20_000 {
        let length = (next() % 80) as usize;
        let mut bytes: Vec<u8> = (0..length).map(|_| (next() >> 24) as u8).collect();
        if next() % 2 == 0 {
            // Nearly valid: a valid value with up to three changed bytes.
            bytes = PARENT.as_bytes().to_vec();
            for _ in 0..=next() % 3 {
                let at = (next() as usize) % bytes.len();
                bytes[at] = (next() >> 32) as u8;
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        let carrier = map(&[("traceparent", &text), ("tracestate", &text), ("baggage", &text)]);
        let _ = inject_map(&extract_map(&carrier));
        let _ = extract_json(&text);
        if let Ok(value) = HeaderValue::from_bytes(&bytes) {
            let mut headers = HeaderMap::new();
            for name in ["traceparent", "tracestate", "baggage"] {
                headers.append(name, value.clone());
            }
            let context = extract_headers(&headers);
            inject_headers(&context, &mut headers);
        }
    }
}

#[test]
fn malformed_json_starts_a_new_trace() {
    let deep = "[".repeat(100_000);
    let nested = (0..10).fold(format!(r#"{{"traceparent":"{PARENT}"}}"#), |inner, _| {
        serde_json::to_string(&inner).unwrap()
    });
    for json in [
        "",
        "null",
        "{",
        "[]",
        "7",
        r#"{"traceparent":7}"#,
        r#"{"traceparent":null}"#,
        "\"{\"",
        &deep,
        &nested,
    ] {
        assert!(
            inject_json(&extract_json(json)).is_none(),
            "{}",
            &json[..json.len().min(40)]
        );
    }
}

#[test]
fn invalid_tracestate_or_baggage_keeps_the_trace() {
    let context = extract_map(&map(&[
        ("traceparent", PARENT),
        ("tracestate", "no good"),
        ("baggage", ";;;=,a=%ff,no token=1"),
    ]));
    assert_eq!(
        inject_map(&context),
        BTreeMap::from([("traceparent".into(), PARENT.into())])
    );
}

#[test]
fn two_traceparent_headers_are_ignored_and_lists_joined() {
    let mut headers = HeaderMap::new();
    headers.append("traceparent", HeaderValue::from_static(PARENT));
    headers.append("tracestate", HeaderValue::from_static("a=1"));
    headers.append("tracestate", HeaderValue::from_static("b=2"));
    headers.append("baggage", HeaderValue::from_static("x=1"));
    headers.append("baggage", HeaderValue::from_static("y=2"));
    let fields = inject_map(&extract_headers(&headers));
    assert_eq!(fields["tracestate"], "a=1,b=2");
    assert_eq!(fields["baggage"], "x=1,y=2");
    headers.append("traceparent", HeaderValue::from_static(PARENT));
    assert!(!extract_headers(&headers).span().span_context().is_valid());
}

#[test]
fn baggage_values_survive_any_number_of_hops() {
    let mut baggage = Baggage::new();
    for (name, value) in [
        ("plain", "a"),
        ("odd", "a=b;c,d \"e\" 100%41 \\ ü"),
        ("empty", ""),
    ] {
        baggage.insert(name, value);
    }
    let mut context = Context::new().with_baggage(baggage);
    for _ in 0..3 {
        context = extract_json(&inject_json(&context).unwrap());
    }
    assert_eq!(
        context.baggage().get("odd").unwrap().as_str(),
        "a=b;c,d \"e\" 100%41 \\ ü"
    );
    assert_eq!(context.baggage().get("empty").unwrap().as_str(), "");
    let with_property = extract_map(&map(&[("baggage", "k=v=w;ttl=5")]));
    assert_eq!(inject_map(&with_property)["baggage"], "k=v%3Dw;ttl=5");
}

#[test]
fn baggage_names_are_not_decoded() {
    let context = extract_map(&map(&[("baggage", "a%20b=c%20d")]));
    assert_eq!(context.baggage().get("a%20b").unwrap().as_str(), "c d");
    assert_eq!(inject_map(&context)["baggage"], "a%20b=c%20d");
}

#[test]
fn baggage_is_sent_within_the_size_that_is_accepted() {
    // Three times as long when it is encoded.
    let long = "ü".repeat(1200);
    let mut baggage = Baggage::new();
    for name in ["a", "b", "c"] {
        baggage.insert(name, long.clone());
    }
    baggage.insert("d", "short");
    let sent = inject_map(&Context::new().with_baggage(baggage));
    let received = extract_map(&HashMap::from_iter(sent));
    let received = received.baggage();
    assert_eq!(received.len(), 2);
    assert_eq!(received.get("a").unwrap().as_str(), long);
    assert_eq!(received.get("d").unwrap().as_str(), "short");
}

#[test]
fn a_tracestate_keeps_its_first_32_members() {
    let members = |count: usize| {
        (0..count)
            .map(|number| format!("v{number}=1"))
            .collect::<Vec<_>>()
            .join(",")
    };
    for count in [32, 33, 60] {
        let context = extract_map(&map(&[("traceparent", PARENT), ("tracestate", &members(count))]));
        assert_eq!(inject_map(&context)["tracestate"], members(32));
    }
}

#[test]
fn injecting_replaces_what_the_headers_carried_before() {
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", HeaderValue::from_static(PARENT));
    headers.insert("baggage", HeaderValue::from_static("stale=1"));
    inject_headers(&Context::new(), &mut headers);
    assert!(headers.is_empty());
}

#[test]
fn the_list_of_propagators_is_read_and_a_wrong_entry_is_named() {
    let carrier = map(&[("traceparent", PARENT), ("baggage", "a=1")]);
    let names = |list: &str| {
        let chosen = list.parse().unwrap();
        inject_map_with(chosen, &carrier)
    };
    assert_eq!(names("tracecontext,baggage"), ["baggage", "traceparent"]);
    assert_eq!(names(" TraceContext "), ["traceparent"]);
    assert_eq!(names("baggage"), ["baggage"]);
    assert_eq!(names("none"), [""; 0]);
    assert_eq!(names("tracecontext,none"), [""; 0]);
    let error = "tracecontext,b3".parse::<Propagator>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "propagator is \"b3\": expected a list of tracecontext and baggage, or none"
    );
    let from_env = |list: &str| Propagator::from_env(&Env::from_pairs([("OTEL_PROPAGATORS", list)]));
    assert_eq!(from_env("").unwrap(), Propagator::default());
    assert_eq!(
        from_env("b4").unwrap_err().to_string(),
        "OTEL_PROPAGATORS is \"b4\": expected a list of tracecontext and baggage, or none"
    );
}

fn inject_map_with(propagator: Propagator, carrier: &HashMap<String, String>) -> Vec<String> {
    propagator
        .inject_map(&propagator.extract_map(carrier))
        .into_keys()
        .collect()
}

#[test]
fn current_context_without_span_is_that_of_the_task() {
    assert!(inject_json(&current_context()).is_none());
    let carrier = extract_map(&map(&[("traceparent", PARENT), ("baggage", "a=1")]));
    let _guard = LogContext::new().carrier(carrier).enter();
    assert_eq!(inject_map(&current_context())["traceparent"], PARENT);
    assert_eq!(inject_map(&current_context())["baggage"], "a=1");
}

#[test]
fn propagator_trait_gives_the_same_contexts() {
    let propagator: &dyn TextMapPropagator = &Propagator::default();
    let carrier = map(&[("traceparent", PARENT), ("baggage", "a=1")]);
    let context = propagator.extract(&carrier);
    let mut out = HashMap::new();
    propagator.inject_context(&context, &mut out);
    assert_eq!(out, carrier);
    assert_eq!(propagator.fields().count(), 3);
}
