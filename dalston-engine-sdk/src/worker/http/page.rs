//! The status page of the worker: `GET /` for a browser.

use std::fmt::{self, Write as _};
use std::time::Duration;

use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::state::ServerState;
use super::status::name_of;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2733;background:#fff}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #dde3ea}\
.bad{color:#a3182c}.none{color:#667}a{color:#0b5cad;margin-right:1rem}\
@media(prefers-color-scheme:dark){body{color:#dfe6ee;background:#14191f}th,td{border-color:#2c3640}\
.bad{color:#ff8f9e}a{color:#7ab8ff}}";

/// Text from outside, in HTML.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The page. It loads itself again every 5 s and needs no script.
pub(super) fn response(server: &ServerState) -> Response {
    let mut page = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut page, server);
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

fn write(page: &mut String, server: &ServerState) -> fmt::Result {
    let (status, engine) = (&server.status, &server.capabilities);
    let (id, version) = (Escaped(&engine.engine_id), Escaped(&engine.version));
    let (instance, phase) = (Escaped(&server.instance), name_of(status.phase()));
    write!(
        page,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{id}</title>\
         <meta http-equiv=\"refresh\" content=\"5\"><style>{STYLE}</style></head><body>\
         <h1>{id} {version}</h1><p>{instance}: {phase}</p>"
    )?;
    if let Some(problem) = status.problem() {
        write!(page, "<p class=\"bad\">Takes no tasks: {}</p>", Escaped(&problem))?;
    }
    let tasks = status.tasks().into_iter();
    let tasks = tasks.map(|task| {
        [
            task.task_id.to_string(),
            task.phase.as_str().to_owned(),
            age(task.age),
        ]
    });
    table(page, "Tasks", ["Task", "Phase", "Age"], tasks)?;

    let loaded = status.models().into_iter().map(|model| (model, "in memory"));
    let loading = status.loading().into_iter().map(|model| (model, "loading"));
    let models = loaded.chain(loading);
    let models = models.map(|(model, state)| [model.to_string(), state.to_owned()]);
    table(page, "Models", ["Model", "State"], models)?;
    if let Some(gpu) = status.gpu_memory() {
        let (used, total) = (gpu.used >> 20, gpu.total >> 20);
        write!(page, "<p>GPU memory: {used} of {total} MiB</p>")?;
    }
    let failures = status.failures().into_iter();
    let failures = failures.map(|failure| {
        let code = failure.code.to_owned();
        [failure.task_id.to_string(), code, failure.error, age(failure.age)]
    });
    table(page, "Last failures", ["Task", "Code", "Error", "Age"], failures)?;

    page.push_str("<h2>More</h2><p>");
    for route in &server.routes {
        if let Some(path) = route.strip_prefix("GET ").filter(|path| *path != "/") {
            let path = Escaped(path);
            write!(page, "<a href=\"{path}\">{path}</a>")?;
        }
    }
    page.push_str("</p></body></html>\n");
    Ok(())
}

fn table<const N: usize>(
    page: &mut String,
    title: &str,
    columns: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> fmt::Result {
    write!(page, "<h2>{title}</h2>")?;
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        page.push_str("<p class=\"none\">none</p>");
        return Ok(());
    }
    page.push_str("<table><tr>");
    for column in columns {
        write!(page, "<th>{column}</th>")?;
    }
    page.push_str("</tr>");
    for row in rows {
        page.push_str("<tr>");
        for cell in row {
            write!(page, "<td>{}</td>", Escaped(&cell))?;
        }
        page.push_str("</tr>");
    }
    page.push_str("</table>");
    Ok(())
}

fn age(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_is_no_markup() {
        let shown = Escaped("<script>\"&'").to_string();
        assert_eq!(shown, "&lt;script&gt;&quot;&amp;&#39;");
    }

    #[test]
    fn ages_have_a_unit() {
        let shown = |seconds| age(Duration::from_secs(seconds));
        assert_eq!(
            [shown(5), shown(61), shown(7_500)],
            ["5 s", "1 min 1 s", "2 h 5 min"]
        );
    }
}
