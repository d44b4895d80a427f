use dalston_telemetry::services::engine::spans;
use dalston_telemetry::services::{Name, attr, event};
use dalston_telemetry::services::{gateway, orchestrator, realtime, session_router};

use crate::markdown::{codes, one_line, page as head, section, table};

const ABOUT: &str = "The names in traces. `docs/architecture.md` shows the tree of the spans of a task.";

pub(crate) fn page() -> String {
    let mut page = head("Spans, attributes and events", ABOUT);
    names(&mut page, "Spans of an engine", "", spans::span::ALL);
    names(&mut page, "Attributes of an engine's spans", "", spans::attr::ALL);
    names(
        &mut page,
        "Spans of the gateway",
        "A request has the span `METHOD route`.",
        gateway::spans::span::ALL,
    );
    names(
        &mut page,
        "Spans of the orchestrator",
        "",
        orchestrator::spans::span::ALL,
    );
    names(
        &mut page,
        "Attributes of the orchestrator's spans",
        "",
        orchestrator::spans::attr::ALL,
    );
    names(
        &mut page,
        "Spans of the session router",
        "",
        session_router::spans::span::ALL,
    );
    names(
        &mut page,
        "Spans of a realtime worker",
        "",
        realtime::spans::span::ALL,
    );
    names(
        &mut page,
        "Attributes of a realtime worker's spans",
        "",
        realtime::spans::attr::ALL,
    );
    names(
        &mut page,
        "Attributes of all services' spans",
        "The resource contains the attributes of the whole service, such as `service.name` and `host.type`.",
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
