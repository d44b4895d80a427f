use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::iter::Peekable;
use std::str::FromStr;

use opentelemetry::Value;

use crate::parse_error::ParseError;
use crate::traces::collector::CollectedSpan;

/// Spans as a tree that can be written down as text and compared as a whole.
///
/// One line per span, two spaces of indentation per level, siblings in the order in which they
/// started:
///
/// ```text
/// engine.queue_wait
/// engine.word-counter.process {dalston.stage=transcribe, dalston.queue_wait_seconds=*}
///   engine.download_input
///   engine.process ! "notes.txt is not UTF-8"
/// ```
///
/// - The name comes first. A name with spaces at its ends, or with one of `{`, `!` and `"`, is put
///   in quotes.
/// - `{key=value, …}` names attributes and their values; `*` stands for any value. Texts with one
///   of `,`, `}`, `"` or `*`, with spaces at their ends, or that look like a number or like `true`
///   or `false`, are put in quotes: `1` is a number and `"1"` a text. In the text that a tree is
///   compared with, only the attributes that are mentioned count.
/// - `!` marks a span that ended with an error, followed by its message. In the text that a tree is
///   compared with the message may be left out; the mark may not.
///
/// A tree prints in the same form, so that what a failed assertion shows can be copied into the
/// test.
///
/// ```
/// use dalston_telemetry::testing::SpanTree;
///
/// let tree: SpanTree = "
///     gateway
///       engine.process {dalston.model=tiny}
/// "
/// .parse()?;
/// assert_eq!(tree.to_string(), "gateway\n  engine.process {dalston.model=tiny}\n");
/// # Ok::<(), dalston_telemetry::ParseError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpanTree {
    roots: Vec<Node>,
}

impl SpanTree {
    /// The tree of these spans, which may come in any order and from several traces.
    ///
    /// A span whose parent is not among them stands at the top.
    #[must_use]
    pub fn of(spans: &[CollectedSpan]) -> Self {
        let mut ordered: Vec<&CollectedSpan> = spans.iter().collect();
        // Of two spans that start together the outer one comes first; between strangers the name
        // decides, so that the order is the same in each run.
        ordered.sort_by(|a, b| {
            a.start
                .cmp(&b.start)
                .then_with(|| b.end.cmp(&a.end))
                .then_with(|| a.name.cmp(&b.name))
        });
        let is_child = |span: &CollectedSpan| {
            ordered
                .iter()
                .any(|other| other.trace_id == span.trace_id && Some(other.span_id) == span.parent_span_id)
        };
        let roots = ordered
            .iter()
            .filter(|span| !is_child(span))
            .map(|span| Node::of(span, &ordered))
            .collect();
        Self { roots }
    }

    /// The tree with no other attributes than these.
    #[must_use]
    pub fn with_attributes<'a>(mut self, keys: impl IntoIterator<Item = &'a str>) -> Self {
        let keys: BTreeSet<&str> = keys.into_iter().collect();
        self.each_mut(&mut |node| node.attributes.retain(|(key, _)| keys.contains(key.as_str())));
        self
    }

    /// Whether this is the tree that the text describes: the same names, nesting, order and errors,
    /// and the attributes that the text mentions.
    ///
    /// # Errors
    ///
    /// The description of the difference, with both trees; or what is wrong with the text.
    pub fn compare(&self, expected: &str) -> Result<(), TreeMismatch> {
        let wanted: Self = expected
            .parse()
            .map_err(|error: ParseError| TreeMismatch(error.to_string()))?;
        let mut pairs = vec![(self.roots.as_slice(), wanted.roots.as_slice())];
        while let Some((found, wanted)) = pairs.pop() {
            let same = found.len() == wanted.len()
                && found
                    .iter()
                    .zip(wanted)
                    .all(|(found, wanted)| found.meets(wanted));
            if !same {
                return Err(self.mismatch(expected));
            }
            pairs.extend(
                found
                    .iter()
                    .zip(wanted)
                    .map(|(f, w)| (f.children.as_slice(), w.children.as_slice())),
            );
        }
        Ok(())
    }

    /// Panics unless this is the tree that the text describes, see [`compare`](Self::compare).
    ///
    /// # Panics
    ///
    /// With both trees in the message, if they differ or if the text is not a tree.
    #[track_caller]
    pub fn assert_eq(&self, expected: &str) {
        if let Err(mismatch) = self.compare(expected) {
            panic!("{mismatch}");
        }
    }

    /// The names from the top down, without the structure.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        let mut pending: Vec<&Node> = self.roots.iter().rev().collect();
        while let Some(node) = pending.pop() {
            names.push(node.name.as_str());
            pending.extend(node.children.iter().rev());
        }
        names
    }

    /// Whether there are no spans.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    fn mismatch(&self, expected: &str) -> TreeMismatch {
        let wanted: Self = expected.parse().unwrap_or_default();
        let mut mentioned = BTreeSet::new();
        wanted
            .clone()
            .each_mut(&mut |node| mentioned.extend(node.attributes.iter().map(|(key, _)| key.clone())));
        let found = self.clone().with_attributes(mentioned.iter().map(String::as_str));
        let indent = |tree: &Self| match tree.is_empty() {
            true => "  (no spans)\n".to_owned(),
            false => tree
                .to_string()
                .lines()
                .fold(String::new(), |text, line| text + "  " + line + "\n"),
        };
        TreeMismatch(format!(
            "the span tree differs\nexpected:\n{}found:\n{}",
            indent(&wanted),
            indent(&found)
        ))
    }

    fn each_mut(&mut self, visit: &mut impl FnMut(&mut Node)) {
        let mut pending: Vec<&mut Node> = self.roots.iter_mut().collect();
        while let Some(node) = pending.pop() {
            visit(node);
            pending.extend(node.children.iter_mut());
        }
    }
}

impl fmt::Display for SpanTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut pending: Vec<(usize, &Node)> = self.roots.iter().rev().map(|node| (0, node)).collect();
        while let Some((depth, node)) = pending.pop() {
            writeln!(f, "{:indent$}{node}", "", indent = depth * 2)?;
            pending.extend(node.children.iter().rev().map(|child| (depth + 1, child)));
        }
        Ok(())
    }
}

impl FromStr for SpanTree {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        // The path of open spans, each with the indentation of its line. A line closes what is not
        // left of it.
        let mut open: Vec<(usize, Node)> = Vec::new();
        let mut roots = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let content = line.trim_start();
            if content.is_empty() {
                continue;
            }
            let indent = line.len() - content.len();
            let node = parse_line(content).map_err(|expected| {
                let what = format!("line {} of the span tree", number + 1);
                ParseError::new(what, content, expected)
            })?;
            while open.last().is_some_and(|(left, _)| *left >= indent) {
                close(&mut open, &mut roots);
            }
            open.push((indent, node));
        }
        while !open.is_empty() {
            close(&mut open, &mut roots);
        }
        Ok(Self { roots })
    }
}

/// How a tree differs from the text that it was compared with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct TreeMismatch(String);

#[derive(Clone, Debug, PartialEq)]
struct Node {
    name: String,
    /// No value in a tree that was parsed means any value.
    attributes: Vec<(String, Option<AttributeValue>)>,
    error: Option<String>,
    children: Vec<Self>,
}

#[derive(Clone, Debug, PartialEq)]
struct AttributeValue {
    text: String,
    /// A number or a boolean, as it is written without quotes.
    is_literal: bool,
}

impl AttributeValue {
    fn of(value: &Value) -> Self {
        let text = value.as_str().into_owned();
        Self {
            is_literal: !matches!(value, Value::String(_)) && is_literal(&text),
            text,
        }
    }

    fn parsed(text: String, quoted: bool) -> Self {
        Self {
            is_literal: !quoted && is_literal(&text),
            text,
        }
    }
}

/// Whether a text without quotes is a number or a boolean. `NaN` and `inf` are names, too.
fn is_literal(text: &str) -> bool {
    let is_number = text.ends_with(|last: char| last.is_ascii_digit()) && text.parse::<f64>().is_ok();
    is_number || matches!(text, "true" | "false")
}

impl Node {
    fn of(span: &CollectedSpan, all: &[&CollectedSpan]) -> Self {
        let children = all
            .iter()
            .filter(|child| child.trace_id == span.trace_id && child.parent_span_id == Some(span.span_id))
            .map(|child| Self::of(child, all))
            .collect();
        let attributes = span
            .attributes
            .iter()
            .map(|kv| (kv.key.to_string(), Some(AttributeValue::of(&kv.value))))
            .collect();
        let error = span
            .is_error()
            .then(|| span.error_message().unwrap_or_default().into_owned());
        Self {
            name: span.name.to_string(),
            attributes,
            error,
            children,
        }
    }

    /// Compares the spans themselves, not what is below them.
    fn meets(&self, wanted: &Self) -> bool {
        let error = match (&self.error, &wanted.error) {
            (None, None) => true,
            (Some(found), Some(wanted)) => wanted.is_empty() || found == wanted,
            _ => false,
        };
        let attributes = wanted.attributes.iter().all(|(key, wanted)| {
            let found = self.attributes.iter().find(|(found, _)| found == key);
            found.is_some_and(|(_, found)| wanted.is_none() || found == wanted)
        });
        self.name == wanted.name && error && attributes
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_text(f, &self.name, "{!\"")?;
        if !self.attributes.is_empty() {
            f.write_str(" {")?;
            for (index, (key, value)) in self.attributes.iter().enumerate() {
                f.write_str(if index == 0 { "" } else { ", " })?;
                write_text(f, key, "=,}\"")?;
                f.write_str("=")?;
                match value {
                    Some(AttributeValue {
                        text,
                        is_literal: false,
                    }) if is_literal(text) => {
                        write_quoted(f, text)?;
                    }
                    Some(value) => write_text(f, &value.text, ",}\"*")?,
                    None => f.write_str("*")?,
                }
            }
            f.write_str("}")?;
        }
        match &self.error {
            Some(message) if message.is_empty() => f.write_str(" !"),
            Some(message) => {
                f.write_str(" ! ")?;
                write_text(f, message, "\"")
            }
            None => Ok(()),
        }
    }
}

/// As it is, or in quotes where it would be misread.
fn write_text(f: &mut fmt::Formatter<'_>, text: &str, special: &str) -> fmt::Result {
    let plain = !text.is_empty()
        && text.trim() == text
        && !text.contains(|c: char| special.contains(c) || c.is_control());
    if plain {
        return f.write_str(text);
    }
    write_quoted(f, text)
}

fn write_quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            '\n' => f.write_str("\\n")?,
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

fn close(open: &mut Vec<(usize, Node)>, roots: &mut Vec<Node>) {
    if let Some((_, node)) = open.pop() {
        match open.last_mut() {
            Some((_, parent)) => parent.children.push(node),
            None => roots.push(node),
        }
    }
}

type Chars<'a> = Peekable<std::str::Chars<'a>>;

/// The error completes the sentence "expected …".
fn parse_line(line: &str) -> Result<Node, &'static str> {
    let mut chars = line.chars().peekable();
    let name = parse_text(&mut chars, "{!")?.0;
    let mut node = Node {
        name,
        attributes: Vec::new(),
        error: None,
        children: Vec::new(),
    };
    if chars.next_if_eq(&'{').is_some() {
        loop {
            skip_spaces(&mut chars);
            if chars.next_if_eq(&'}').is_some() {
                break;
            }
            let key = parse_text(&mut chars, "=,}")?.0;
            chars
                .next_if_eq(&'=')
                .ok_or("= and a value after the attribute's name")?;
            let (value, quoted) = parse_text(&mut chars, ",}")?;
            node.attributes.push((
                key,
                (quoted || value != "*").then(|| AttributeValue::parsed(value, quoted)),
            ));
            match chars.next() {
                Some(',') => {}
                Some('}') => break,
                _ => return Err(", or } after the attribute's value"),
            }
        }
    }
    skip_spaces(&mut chars);
    match chars.next() {
        None => Ok(node),
        Some('!') => {
            node.error = Some(parse_text(&mut chars, "")?.0);
            if chars.next().is_some() {
                Err("nothing after the error's message")
            } else {
                Ok(node)
            }
        }
        Some(_) => Err("{ or ! after the name"),
    }
}

/// Text up to one of `ends`, and whether it was in quotes.
fn parse_text(chars: &mut Chars<'_>, ends: &str) -> Result<(String, bool), &'static str> {
    skip_spaces(chars);
    let mut text = String::new();
    if chars.next_if_eq(&'"').is_none() {
        while let Some(c) = chars.next_if(|c| !ends.contains(*c)) {
            text.push(c);
        }
        text.truncate(text.trim_end().len());
        return Ok((text, false));
    }
    loop {
        match chars.next() {
            Some('"') => break,
            Some('\\') => match chars.next() {
                Some('n') => text.push('\n'),
                Some(c) => text.push(c),
                None => return Err("a closing quote"),
            },
            Some(c) => text.push(c),
            None => return Err("a closing quote"),
        }
    }
    skip_spaces(chars);
    Ok((text, true))
}

fn skip_spaces(chars: &mut Chars<'_>) {
    while chars.next_if(|c| c.is_whitespace()).is_some() {}
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use opentelemetry::KeyValue;
    use opentelemetry::trace::{SpanId, SpanKind, Status, TraceId};

    use super::*;

    fn span(id: u64, parent: u64, name: &'static str, start: u64) -> CollectedSpan {
        CollectedSpan {
            trace_id: TraceId::from(1),
            span_id: SpanId::from(id),
            parent_span_id: (parent != 0).then(|| SpanId::from(parent)),
            parent_is_remote: false,
            name: name.into(),
            kind: SpanKind::Internal,
            start: SystemTime::UNIX_EPOCH + Duration::from_secs(start),
            end: SystemTime::UNIX_EPOCH + Duration::from_secs(start + 1),
            attributes: vec![KeyValue::new("model", "tiny"), KeyValue::new("attempt", 1)],
            events: Vec::new(),
            links: Vec::new(),
            status: Status::Unset,
        }
    }

    fn task() -> SpanTree {
        let mut spans = [
            span(3, 2, "upload", 9),
            span(2, 7, "task", 2),
            span(1, 7, "queue", 1),
            span(4, 2, "process", 3),
        ];
        spans[3].status = Status::error("refused");
        SpanTree::of(&spans)
    }

    #[test]
    fn a_tree_meets_a_text_that_mentions_some_of_its_attributes() {
        task().assert_eq(
            "
            queue
            task {model=tiny, attempt=*}
              process !
              upload {attempt=1}
            ",
        );
        task().assert_eq("queue\ntask\n process ! refused\n upload");
    }

    #[test]
    fn each_kind_of_difference_is_one() {
        for different in [
            "queue\ntask\n  process !",
            "queue\ntask\n  upload\n  process !",
            "queue\ntask\n  process !\n    upload",
            "queue\ntask\n  process\n  upload",
            "queue\ntask\n  process ! timed out\n  upload",
            "queue !\ntask\n  process !\n  upload",
            "queue {attempt=2}\ntask\n  process !\n  upload",
            "queue {other=*}\ntask\n  process !\n  upload",
            "queues\ntask\n  process !\n  upload",
            "",
        ] {
            assert!(task().compare(different).is_err(), "{different}");
        }
    }

    #[test]
    fn a_mismatch_shows_both_trees_with_the_attributes_that_matter() {
        let mismatch = task().compare("queue\ntask {model=base}\n  process").unwrap_err();
        assert_eq!(
            mismatch.to_string(),
            "the span tree differs\n\
             expected:\n  queue\n  task {model=base}\n    process\n\
             found:\n  queue {model=tiny}\n  task {model=tiny}\n    process {model=tiny} ! refused\n    upload {model=tiny}\n"
        );
        let nothing = SpanTree::default().compare("queue").unwrap_err();
        assert_eq!(
            nothing.to_string(),
            "the span tree differs\nexpected:\n  queue\nfound:\n  (no spans)\n"
        );
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        let mut odd = span(1, 0, " a {name} \"with\" everything! ", 1);
        odd.attributes = vec![
            KeyValue::new("a=b", "*"),
            KeyValue::new("text", "one, two}\nthree\\ \"four\""),
        ];
        odd.status = Status::error("said \"no\"");
        let child = span(2, 1, "plain", 2);
        let tree = SpanTree::of(&[odd, child]);
        assert_eq!(tree.to_string().parse(), Ok(tree.clone()));
        tree.assert_eq(&tree.to_string());
    }

    #[test]
    fn numbers_and_their_texts_are_different_values() {
        let mut span = span(1, 0, "a", 1);
        span.attributes = vec![
            KeyValue::new("number", 1),
            KeyValue::new("text", "1"),
            KeyValue::new("on", true),
            KeyValue::new("word", "true"),
            KeyValue::new("name", "inf"),
            KeyValue::new("ratio", -0.5),
            KeyValue::new("list", Value::Array(vec![1_i64, 2].into())),
        ];
        let tree = SpanTree::of(&[span]);
        assert_eq!(
            tree.to_string(),
            "a {number=1, text=\"1\", on=true, word=\"true\", name=inf, ratio=-0.5, list=\"[1,2]\"}\n"
        );
        tree.assert_eq(&tree.to_string());
        for wrong in [
            "number=\"1\"",
            "text=1",
            "on=\"true\"",
            "word=true",
            "ratio=\"-0.5\"",
        ] {
            assert!(tree.compare(&format!("a {{{wrong}}}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_text_that_is_no_tree_is_refused_with_its_line() {
        let refused = |text: &str| text.parse::<SpanTree>().unwrap_err().to_string();
        assert_eq!(
            refused("queue\ntask {model}"),
            "line 2 of the span tree is \"task {model}\": expected = and a value after the attribute's name"
        );
        assert_eq!(
            refused("task {model=tiny"),
            "line 1 of the span tree is \"task {model=tiny\": expected , or } after the attribute's value"
        );
        assert_eq!(
            refused("\"task"),
            r#"line 1 of the span tree is "\"task": expected a closing quote"#
        );
        assert_eq!(
            refused("task {a=1} b"),
            "line 1 of the span tree is \"task {a=1} b\": expected { or ! after the name"
        );
    }

    #[test]
    fn spans_with_the_same_id_in_different_traces_stay_apart() {
        let mut other = span(2, 1, "of another trace", 5);
        other.trace_id = TraceId::from(2);
        SpanTree::of(&[span(1, 0, "root", 1), other]).assert_eq("root\nof another trace");
    }
}
