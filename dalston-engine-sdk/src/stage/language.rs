//! Language tags.

/// A language in the form of an attribute: short and in lower case. `None` for anything else.
pub(crate) fn language_tag(language: &str) -> Option<String> {
    const LONGEST: usize = 35;
    let fine = language.len() <= LONGEST
        && language
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (fine && !language.is_empty()).then(|| language.to_ascii_lowercase())
}
