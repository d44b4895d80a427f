use dalston_telemetry::settings::{Description, Group, SERVICES};

use crate::markdown::{codes, one_line, page as head, section, table};

const ABOUT: &str = "Everything is off or has a default that works. A value that is not accepted is an error that names the \
variable, the value and the accepted values. An empty value counts as not set. Of several names in one row, the first that is \
set counts, unless the row says otherwise. Switches also accept 1, yes, on and 0, no, off, except for those that OpenTelemetry \
defines.";

const OF_SERVICES: &str = "Engines also read the other variables of \
[telemetry](https://docs.rs/dalston-telemetry/latest/dalston_telemetry/settings/index.html): traces, metrics, log lines, cloud.";

/// The page of `docs/reference`.
pub(crate) fn page() -> String {
    let mut page = head("Environment variables", ABOUT);
    groups(&mut page, dalston_telemetry::settings::VARIABLES);
    groups(&mut page, dalston_engine_sdk::settings::VARIABLES);
    page
}

/// The page of telemetry, which is a part of its rustdoc.
pub(crate) fn page_of_telemetry() -> String {
    let mut page = head("Environment variables", ABOUT);
    groups(&mut page, dalston_telemetry::settings::VARIABLES);
    page
}

/// The page of the SDK, which is a part of its rustdoc.
pub(crate) fn page_of_sdk() -> String {
    let mut page = head("Environment variables", &format!("{ABOUT} {OF_SERVICES}"));
    groups(&mut page, dalston_engine_sdk::settings::VARIABLES);
    groups(&mut page, &[&SERVICES]);
    page
}

fn groups(page: &mut String, groups: &[&Group]) {
    for group in groups {
        section(page, group.title, &one_line(group.about));
        let described = group.variables.iter().map(|variable| variable.describe());
        table(
            page,
            ["Variable", "Default", "Accepted", "Meaning"],
            described.map(|variable| {
                let Description {
                    names,
                    default,
                    accepted,
                    meaning,
                    ..
                } = variable;
                [codes(names), default, accepted, meaning]
            }),
        );
    }
}
