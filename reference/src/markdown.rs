use std::fmt::Write;

/// The head of a page, with a note that the page is generated.
pub(crate) fn page(title: &str, about: &str) -> String {
    format!("# {title}\n\n<!-- Written by cargo xtask reference. Change the code instead. -->\n\n{about}\n")
}

pub(crate) fn section(page: &mut String, title: &str, about: &str) {
    page.push_str(&format!("\n## {title}\n\n"));
    if !about.is_empty() {
        page.push_str(&format!("{about}\n\n"));
    }
}

/// A table whose cells are Markdown.
pub(crate) fn table<const N: usize>(
    page: &mut String,
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) {
    let mut line = |cells: [String; N]| {
        let cells = cells.map(|cell| cell.replace('|', "\\|"));
        // Writing into a string does not fail.
        let _ = writeln!(page, "| {} |", cells.join(" | "));
    };
    line(head.map(str::to_owned));
    line(head.map(|_| "---".to_owned()));
    rows.into_iter().for_each(line);
}

/// The texts as code, separated by commas.
pub(crate) fn codes<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> String {
    let codes = texts.into_iter().map(|text| format!("`{}`", text.as_ref()));
    codes.collect::<Vec<_>>().join(", ")
}

/// A documentation text on one line.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
