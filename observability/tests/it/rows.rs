//! The known defects of variables and of the detection of EC2, and the tests that keep each away.
//! The crate with the code has the tests. Here a row fails if its test is removed or renamed.

use crate::files::read;

/// What must be true, and the file and the name of its test.
const ROWS: [(&str, &str, &str); 33] = [
    // Variables.
    (
        "a wrong sampler is an error",
        SETTINGS,
        "unknown_value_is_an_error_that_names_the_variable",
    ),
    (
        "an endpoint without a scheme works",
        DELIVERY,
        "endpoint_without_scheme_gets_plain_text",
    ),
    (
        "OTEL_EXPORTER_OTLP_INSECURE counts",
        TLS,
        "endpoint_without_scheme_is_encrypted_if_not_insecure",
    ),
    (
        "OTEL_SDK_DISABLED wins over OTEL_ENABLED",
        DELIVERY,
        "disabled_sdk_or_missing_exporter_exports_nothing",
    ),
    (
        "OTEL_SERVICE_NAME wins over resource attributes",
        RESOURCE,
        "service_name_is_from_variable_then_attributes_then_code",
    ),
    (
        "resource attributes are percent-decoded",
        RESOURCE,
        "attributes_of_the_environment_are_percent_decoded",
    ),
    (
        "environment attributes have their current name",
        RESOURCE,
        "the_deprecated_environment_attribute_gets_its_new_name",
    ),
    (
        "a propagator that is not there is a warning",
        SETTINGS,
        "known_unsupported_value_is_one_warning",
    ),
    ("OTEL_TRACES_EXPORTER counts", EXPORTER, "exporters_are_a_list"),
    (
        "OTEL_METRICS_EXPORTER counts",
        EXPORTER,
        "metrics_are_pushed_when_the_list_of_exporters_says_so",
    ),
    (
        "protocol, headers, timeout, limits count",
        EXPORTER,
        "every_variable_does_what_it_says",
    ),
    (
        "a timeout that is no number is an error",
        EXPORTER,
        "error_names_variable_value_and_accepted_values",
    ),
    (
        "an endpoint of a signal is used as it is",
        DELIVERY,
        "an_endpoint_for_traces_is_used_as_it_is_and_wins",
    ),
    (
        "compression is there",
        DELIVERY,
        "headers_compression_path_and_resource_arrive",
    ),
    (
        "values of headers are not logged",
        EXPORTER,
        "secrets_are_not_in_errors_or_debug_output",
    ),
    (
        "client certificates count",
        TLS,
        "client_certificate_is_sent_if_collector_asks",
    ),
    (
        "OTEL_BSP_EXPORT_TIMEOUT is a bound",
        BATCH,
        "batch_is_given_up_at_its_timeout_and_next_one_sent",
    ),
    (
        "long attribute values are cut",
        DELIVERY,
        "long_texts_are_cut_for_collector_and_in_memory",
    ),
    (
        "temporality counts",
        PUSH,
        "differences_are_told_from_what_the_collector_has_heard",
    ),
    // Faults of collectors.
    (
        "a partial success is counted",
        FAULTS,
        "a_partial_success_is_counted_and_not_sent_again",
    ),
    (
        "a hanging collector costs the time of one bound",
        PEER,
        "one_bound_ends_all_signals",
    ),
    ("an exporter needs no runtime", PEER, "no_runtime_is_needed"),
    (
        "exporting creates no spans",
        DELIVERY,
        "spans_of_exporter_crates_are_not_exported",
    ),
    (
        "a full queue is counted",
        PEER,
        "spans_that_find_a_full_queue_are_reported",
    ),
    // Detection of EC2.
    (
        "two requests suffice, with a token",
        CLOUD,
        "an_instance_is_recognised_with_two_requests",
    ),
    (
        "items replace a missing document",
        CLOUD,
        "single_items_replace_a_missing_document",
    ),
    (
        "version 1 only after a refusal",
        CLOUD,
        "version_1_is_used_only_if_tokens_are_refused",
    ),
    (
        "one new token after 401",
        CLOUD,
        "a_token_that_is_refused_is_renewed_once",
    ),
    (
        "Fargate has a service of its own",
        CLOUD,
        "fargate_is_recognised_and_has_no_instance",
    ),
    (
        "the environment can forbid requests",
        CLOUD,
        "no_request_where_forbidden_or_not_ec2",
    ),
    (
        "hanging, redirecting and endless services end in time",
        CLOUD,
        "a_faulty_service_ends_detection_in_time_without_error",
    ),
    (
        "answers that are not Amazon's are ignored",
        IDENTITY,
        "values_that_do_not_look_like_amazons_are_ignored",
    ),
    (
        "INSTANCE_TYPE wins, and an empty one does not",
        RESOURCE,
        "the_instance_type_is_explicit_before_it_is_detected",
    ),
];

const SETTINGS: &str = "tests/it/settings.rs";
const DELIVERY: &str = "tests/it/delivery.rs";
const FAULTS: &str = "tests/it/faults.rs";
const TLS: &str = "tests/it/tls.rs";
const PEER: &str = "tests/it/peer.rs";
const PUSH: &str = "tests/it/push.rs";
const CLOUD: &str = "tests/it/cloud.rs";
const EXPORTER: &str = "src/export/exporter_config/tests.rs";
const BATCH: &str = "src/export/delivery/batch/tests.rs";
const RESOURCE: &str = "src/resource/mod.rs";
const IDENTITY: &str = "src/resource/cloud/aws/identity.rs";

#[test]
fn each_known_defect_of_variables_has_its_test() {
    let missing: Vec<_> = ROWS
        .iter()
        .filter(|(_, file, test)| {
            let code = read(&format!("dalston-telemetry/{file}"));
            !code.contains(&format!("fn {test}("))
        })
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
