//! Codes of languages.

/// A language as it may stand in an attribute: short and in lower case.
pub(crate) fn language_tag(language: &str) -> Option<String> {
    const LONGEST: usize = 35;
    let fine = language.len() <= LONGEST
        && language
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (fine && !language.is_empty()).then(|| language.to_ascii_lowercase())
}
