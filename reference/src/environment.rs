use dalston_telemetry::variables::VariableGroup;

use crate::markdown::{codes, page as head, section, table};

const ABOUT: &str = "Everything is off or has a default that works. A value that makes no sense is an error that names the \
variable, the value and what is accepted. An empty value counts as not set.";

pub(crate) fn page() -> String {
    let mut page = head("Environment variables", ABOUT);
    let groups = [
        dalston_telemetry::variables::VARIABLES,
        dalston_engine_sdk::variables::VARIABLES,
    ];
    for group in groups.into_iter().flatten() {
        let VariableGroup {
            title, about, note, ..
        } = *group;
        let mut about = about.to_owned();
        if let Some(first) = about.get_mut(..1) {
            first.make_ascii_uppercase();
            about.push('.');
        }
        section(&mut page, title, &about);
        table(
            &mut page,
            ["Variable", "Default", "Meaning"],
            group.variables.iter().map(|variable| {
                [
                    codes(variable.names),
                    variable.default.to_owned(),
                    variable.meaning.to_owned(),
                ]
            }),
        );
        if !note.is_empty() {
            page.push_str(&format!("\n{note}\n"));
        }
    }
    page
}
