use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanId, SpanKind, Status, TraceId};

use super::text::duration_text;
use super::*;

/// A span from `start` to `end` milliseconds after the epoch.
fn span(id: u64, parent: u64, name: &'static str, start: u64, end: u64) -> CollectedSpan {
    CollectedSpan {
        trace_id: TraceId::from(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736),
        span_id: SpanId::from(id),
        parent_span_id: (parent != 0).then(|| SpanId::from(parent)),
        parent_is_remote: false,
        name: Cow::Borrowed(name),
        kind: SpanKind::Internal,
        start: SystemTime::UNIX_EPOCH + Duration::from_millis(start),
        end: SystemTime::UNIX_EPOCH + Duration::from_millis(end),
        attributes: Vec::new(),
        events: Vec::new(),
        links: Vec::new(),
        status: Status::Unset,
    }
}

fn with(mut span: CollectedSpan, change: impl FnOnce(&mut CollectedSpan)) -> CollectedSpan {
    change(&mut span);
    span
}

/// The spans of one cold task.
fn task() -> Vec<CollectedSpan> {
    // A span that another process made is above both.
    let remote = |span: &mut CollectedSpan| {
        span.parent_span_id = Some(SpanId::from(99));
        span.parent_is_remote = true;
    };
    vec![
        with(span(1, 0, "engine.queue_wait", 1000, 1040), remote),
        with(span(2, 0, "engine.faster-whisper.process", 1040, 2600), remote),
        span(3, 2, "engine.download_input", 1041, 1060),
        with(span(4, 2, "engine.model_load", 1060, 1460), |span| {
            span.attributes
                .push(KeyValue::new("dalston.model", "whisper-tiny"));
        }),
        with(span(5, 2, "engine.process", 1460, 2590), |span| {
            span.attributes
                .push(KeyValue::new("dalston.model", "whisper-tiny"));
            span.attributes.push(KeyValue::new("dalston.language", "de"));
        }),
        span(6, 5, "whisper.encode", 1470, 1800),
        span(7, 5, "whisper.decode", 1800, 2580),
        span(8, 2, "engine.upload_output", 2590, 2600),
    ]
}

#[track_caller]
fn assert_drawn(look: &Waterfall, spans: &[CollectedSpan], expected: &str) {
    assert_same(&look.render(spans), expected);
}

#[track_caller]
fn assert_same(drawn: &str, expected: &str) {
    let expected = expected.trim_start_matches('\n');
    assert!(drawn == expected, "drawn:\n{drawn}\nexpected:\n{expected}");
}

#[test]
fn a_task_is_a_tree_with_bars_on_one_time_line() {
    assert_drawn(
        &Waterfall::new().width(90),
        &task(),
        "
trace 4bf92f3577b34da6a3ce929d0e0e4736 · 1.60 s · 8 spans
engine.queue_wait                   0 s   40.0 ms  ▉
engine.faster-whisper.process   40.0 ms    1.56 s  ███████████████████████████████████████
├─ engine.download_input        41.0 ms   19.0 ms  █▍
├─ engine.model_load            60.0 ms    400 ms   ██████████▏
├─ engine.process                460 ms    1.13 s             ███████████████████████████▊
│  ├─ whisper.encode             470 ms    330 ms             ████████▌
│  └─ whisper.decode             800 ms    780 ms                     ███████████████████▌
└─ engine.upload_output          1.59 s   10.0 ms                                        █
",
    );
}

#[test]
fn spans_may_come_in_any_order() {
    let look = Waterfall::new();
    let mut reversed = task();
    reversed.reverse();
    assert_eq!(look.render(&reversed), look.render(&task()));
}

#[test]
fn ascii_output_stays_ascii_and_shows_chosen_attributes() {
    let look = Waterfall::new()
        .width(90)
        .ascii(true)
        .attributes(["dalston.model", "dalston.language"]);
    assert_drawn(
        &look,
        &task(),
        "
trace 4bf92f3577b34da6a3ce929d0e0e4736 - 1.60 s - 8 spans
engine.queue_wait                   0 s   40.0 ms  =
engine.faster-whisper.process   40.0 ms    1.56 s  =======================================
|- engine.download_input        41.0 ms   19.0 ms  =
|- engine.model_load            60.0 ms    400 ms   ==========
|     dalston.model=whisper-tiny
|- engine.process                460 ms    1.13 s             ===========================
|  |  dalston.model=whisper-tiny  dalston.language=de
|  |- whisper.encode             470 ms    330 ms             ========
|  `- whisper.decode             800 ms    780 ms                     ===================
`- engine.upload_output          1.59 s   10.0 ms                                        =
",
    );
    assert!(look.render(&task()).is_ascii());
}

#[test]
fn a_narrow_terminal_loses_bars_before_ends_of_names() {
    assert_drawn(
        &Waterfall::new().width(55),
        &task(),
        "
trace 4bf92f3577b34da6a3ce929d0e0e4736 · 1.60 s · 8 spans
engine.queue_wait                   0 s   40.0 ms
engine.faster-whisper.process   40.0 ms    1.56 s
├─ engine.download_input        41.0 ms   19.0 ms
├─ engine.model_load            60.0 ms    400 ms
├─ engine.process                460 ms    1.13 s
│  ├─ whisper.encode             470 ms    330 ms
│  └─ whisper.decode             800 ms    780 ms
└─ engine.upload_output          1.59 s   10.0 ms
",
    );
    assert_drawn(
        &Waterfall::new().width(36),
        &task(),
        "
trace 4bf92f3577b34da6a3ce929d0e0e4736 · 1.60 s · 8 spans
engine.queue_wa…       0 s   40.0 ms
engine.faster-w…   40.0 ms    1.56 s
├─ engine.downl…   41.0 ms   19.0 ms
├─ engine.model…   60.0 ms    400 ms
├─ engine.proce…    460 ms    1.13 s
│  ├─ whisper.e…    470 ms    330 ms
│  └─ whisper.d…    800 ms    780 ms
└─ engine.uploa…    1.59 s   10.0 ms
",
    );
    assert_drawn(
        &Waterfall::new().width(0),
        &task()[..2],
        "
trace 4bf92f3577b34da6a3ce929d0e0e4736 · 1.60 s · 2 spans
engine.queu…       0 s   40.0 ms
engine.fast…   40.0 ms    1.56 s
",
    );
}

#[test]
fn no_line_is_wider_than_the_width_asked_for() {
    let mut spans = task();
    spans[4].name = Cow::Owned("x".repeat(300));
    spans[4].status = Status::error("y".repeat(300));
    for width in [44, 60, 80, 100, 133, 250] {
        for line in Waterfall::new()
            .width(width)
            .attributes(["dalston.model"])
            .render(&spans)
            .lines()
            .skip(1)
        {
            assert!(
                line.chars().count() <= width,
                "{} columns of {width}: {line}",
                line.chars().count()
            );
        }
    }
}

#[test]
fn a_span_that_failed_says_why() {
    let mut spans = task();
    spans.truncate(5);
    let reason = Status::error("talk.wav: the data chunk ends after 3 of 12 s");
    spans[1].status = reason.clone();
    spans[4].status = reason;
    assert_drawn(
        &Waterfall::new().width(80),
        &spans,
        "
trace 4bf92f3577b34da6a3ce929d0e0e4736 · 1.60 s · 5 spans · 2 failed
engine.queue_wait                   0 s   40.0 ms  ▋
engine.faster-whisper.process   40.0 ms    1.56 s  █████████████████████████████
│  ✗ talk.wav: the data chunk ends after 3 of 12 s
├─ engine.download_input        41.0 ms   19.0 ms  █
├─ engine.model_load            60.0 ms    400 ms   ███████▎
└─ engine.process                460 ms    1.13 s          ████████████████████▊
      ✗ talk.wav: the data chunk ends after 3 of 12 s
",
    );
}

#[test]
fn colours_mark_the_bars_and_the_errors() {
    let mut spans = vec![span(1, 0, "outer", 0, 10), span(2, 1, "inner", 5, 10)];
    spans[1].status = Status::error("refused");
    let drawn = Waterfall::new().width(60).color(true).render(&spans);
    assert_same(
        &drawn.replace('\u{1b}', "ESC"),
        "
ESC[1mtrace 4bf92f3577b34da6a3ce929d0e0e4736 · 10.0 ms · 2 spans · 1 failedESC[0m
outer          0 s   10.0 ms  ESC[36m██████████████████████████████ESC[0m
ESC[2m└─ ESC[0mESC[31minnerESC[0m   5.00 ms   5.00 ms                 ESC[31m███████████████ESC[0m
ESC[2m      ESC[0mESC[31m✗ refusedESC[0m
",
    );
}

#[test]
fn clocks_that_differ_are_shown_as_such() {
    let spans = [
        span(1, 0, "gateway", 1000, 2000),
        // Made by a host whose clock is 300 ms behind, and goes on after the span above it.
        span(2, 1, "engine.process", 700, 2500),
        // Here the clock was set back while the span was open.
        span(3, 1, "engine.upload_output", 1900, 1400),
    ];
    assert_drawn(
        &Waterfall::new().width(80),
        &spans,
        "
trace 4bf92f3577b34da6a3ce929d0e0e4736 · 1.80 s · 3 spans
gateway                    300 ms    1.00 s       ████████████████████▎
├─ engine.process             0 s    1.80 s  ███████████████████████████████████
│     ⚠ starts 300 ms before its parent: clocks differ
└─ engine.upload_output    1.20 s       0 s                         ▏
      ⚠ ends 500 ms before it starts: the clock was set back
",
    );
}

#[test]
fn a_span_whose_parent_is_missing_is_shown_at_the_top() {
    let spans = [
        span(1, 0, "gateway", 0, 100),
        span(2, 77, "engine.process", 20, 80),
        span(3, 2, "decode", 30, 80),
    ];
    assert_drawn(
        &Waterfall::new().width(80),
        &spans,
        "
trace 4bf92f3577b34da6a3ce929d0e0e4736 · 100 ms · 3 spans
gateway              0 s    100 ms  ████████████████████████████████████████████
engine.process   20.0 ms   60.0 ms          ███████████████████████████▏
│  ⚠ its parent is not in this trace: lost, or not ended yet
└─ decode        30.0 ms   50.0 ms               ██████████████████████▏
",
    );
}

#[test]
fn a_ring_of_parents_is_drawn_once() {
    let spans = [
        span(1, 3, "one", 0, 30),
        span(2, 1, "two", 0, 20),
        span(3, 2, "three", 0, 10),
        span(4, 4, "own parent", 5, 10),
    ];
    assert_drawn(
        &Waterfall::new().width(60),
        &spans,
        "
trace 4bf92f3577b34da6a3ce929d0e0e4736 · 30.0 ms · 4 spans
one               0 s   30.0 ms  ███████████████████████████
└─ two            0 s   20.0 ms  ██████████████████
   └─ three       0 s   10.0 ms  █████████
own parent    5.00 ms   5.00 ms      █████
   ⚠ its parent is not in this trace: lost, or not ended yet
",
    );
}

#[test]
fn a_long_run_of_one_name_is_folded_except_for_what_failed() {
    let mut spans = vec![span(1, 0, "engine.process", 0, 1000)];
    for window in 0..10 {
        spans.push(span(
            10 + window,
            1,
            "whisper.window",
            window * 100,
            window * 100 + 90,
        ));
    }
    spans[9].status = Status::error("out of memory");
    assert_drawn(
        &Waterfall::new().width(70).fold_after(3),
        &spans,
        "
trace 4bf92f3577b34da6a3ce929d0e0e4736 · 1.00 s · 11 spans · 1 failed
engine.process                   0 s    1.00 s  ██████████████████████
├─ whisper.window                0 s   90.0 ms  █▉
├─ whisper.window             100 ms   90.0 ms    ██▏
├─ whisper.window             200 ms   90.0 ms      ██▍
├─ ⋮ 6 more whisper.window    300 ms    540 ms        ░░░░░░░░░░░░░░░░
└─ whisper.window             800 ms   90.0 ms                   ██▌
      ✗ out of memory
",
    );
    let unfolded = Waterfall::new().width(70).fold_after(0).render(&spans);
    assert_eq!(unfolded.matches("whisper.window").count(), 10);
}

#[test]
fn a_trace_that_is_deeper_than_the_stack_is_drawn() {
    let spans: Vec<_> = (1..=2_000)
        .map(|depth| span(depth, depth - 1, "nested", depth, 10_000 - depth))
        .collect();
    assert_eq!(Waterfall::new().render(&spans).lines().count(), 2_001);
}

#[test]
fn names_and_values_cannot_steer_the_terminal() {
    let spans = [with(span(1, 0, "evil\u{1b}[2Jname\n", 0, 10), |span| {
        span.attributes.push(KeyValue::new("file", "a\nb\u{7}"));
        span.status = Status::error("first\r\nsecond");
    })];
    assert_drawn(
        &Waterfall::new().width(60).attributes(["file"]),
        &spans,
        "
trace 4bf92f3577b34da6a3ce929d0e0e4736 · 10.0 ms · 1 span · 1 failed
evil [2Jname       0 s   10.0 ms  ██████████████████████████
   ✗ first  second
   file=a b
",
    );
}

#[test]
fn nothing_comes_of_no_spans_and_an_instant_has_a_bar() {
    assert_drawn(&Waterfall::new(), &[], "");
    assert_drawn(
        &Waterfall::new().width(40),
        &[span(1, 0, "instant", 5, 5)],
        "
trace 4bf92f3577b34da6a3ce929d0e0e4736 · 0 s · 1 span
instant       0 s       0 s  ▏
",
    );
}

#[test]
fn durations_have_three_digits_and_the_unit_that_suits_them() {
    let cases = [
        (Duration::ZERO, "0 s"),
        (Duration::from_nanos(999), "999 ns"),
        (Duration::from_nanos(1_000), "1.00 µs"),
        (Duration::from_nanos(999_499), "999 µs"),
        (Duration::from_nanos(999_500), "1.00 ms"),
        (Duration::from_micros(9_994), "9.99 ms"),
        (Duration::from_micros(9_996), "10.0 ms"),
        (Duration::from_millis(99_949), "99.9 s"),
        (Duration::from_millis(99_951), "1m40s"),
        (Duration::from_secs(36_061), "10h01m01s"),
    ];
    for (duration, expected) in cases {
        assert_eq!(duration_text(duration, false), expected, "{duration:?}");
    }
}

#[test]
fn attributes_that_need_more_than_a_line_get_more_than_one() {
    let spans = [with(span(1, 0, "engine.process", 0, 10), |span| {
        span.attributes = vec![
            KeyValue::new("dalston.model", "whisper-tiny"),
            KeyValue::new("dalston.audio_duration_seconds", 3.409_750_1),
            KeyValue::new("dalston.realtime_factor", 0.000_123_456),
            KeyValue::new("dalston.delivery_count", 12_345),
        ];
    })];
    let keys = [
        "dalston.model",
        "dalston.audio_duration_seconds",
        "dalston.realtime_factor",
        "dalston.delivery_count",
    ];
    assert_drawn(
        &Waterfall::new().width(70).attributes(keys),
        &spans,
        "
trace 4bf92f3577b34da6a3ce929d0e0e4736 · 10.0 ms · 1 span
engine.process       0 s   10.0 ms  ██████████████████████████████████
   dalston.model=whisper-tiny  dalston.audio_duration_seconds=3.41
   dalston.realtime_factor=0.0001235  dalston.delivery_count=12345
",
    );
}
