use dalston_telemetry::names::{Name, attr, event, span};

use crate::markdown::{codes, one_line, page as head, section, table};

const ABOUT: &str =
    "What traces are made of. `docs/architecture.md` shows how the spans of a task lie in each other.";

pub(crate) fn page() -> String {
    let mut page = head("Spans, attributes and events", ABOUT);
    names(&mut page, "Spans", "", span::ALL);
    names(
        &mut page,
        "Attributes",
        "Attributes of the whole service, such as `service.name` and `host.type`, stand in its resource.",
        attr::ALL,
    );
    names(&mut page, "Events", "", event::ALL);
    page
}

fn names(page: &mut String, title: &str, about: &str, names: &[Name]) {
    section(page, title, about);
    table(
        page,
        ["Name", "Meaning"],
        names
            .iter()
            .map(|name| [codes([name.name]), one_line(name.meaning)]),
    );
}
