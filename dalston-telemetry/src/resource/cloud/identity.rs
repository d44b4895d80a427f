//! What an instance is called. Values are believed only if they look like Amazon's.

use serde_json::Value;

/// What is known of an instance, and of where it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Identity {
    pub(super) instance_id: Option<String>,
    pub(super) instance_type: Option<String>,
    pub(super) image_id: Option<String>,
    pub(super) region: Option<String>,
    pub(super) availability_zone: Option<String>,
}

impl Identity {
    /// Reads the instance identity document. `None` if it is not one.
    pub(super) fn from_document(text: &str) -> Option<Self> {
        let document: Value = serde_json::from_str(text).ok()?;
        let text = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
        let mut identity = Self::default();
        identity.set_instance_id(text("instanceId"));
        identity.set_instance_type(text("instanceType"));
        identity.set_image_id(text("imageId"));
        identity.set_region(text("region"));
        identity.set_availability_zone(text("availabilityZone"));
        identity.instance_id.is_some().then_some(identity)
    }

    pub(super) fn set_instance_id(&mut self, id: &str) {
        set(&mut self.instance_id, id, |id| is_hexadecimal_after("i-", id));
    }

    pub(super) fn set_instance_type(&mut self, name: &str) {
        let is_type = |name: &str| {
            name.split_once('.')
                .is_some_and(|(family, size)| is_word(family) && is_word(size))
        };
        set(&mut self.instance_type, name, is_type);
    }

    pub(super) fn set_image_id(&mut self, id: &str) {
        set(&mut self.image_id, id, |id| is_hexadecimal_after("ami-", id));
    }

    /// `eu-west-2`, `us-gov-east-1`
    pub(super) fn set_region(&mut self, region: &str) {
        set(&mut self.region, region, |region| {
            let number = region.rsplit('-').next().unwrap_or_default();
            is_place(region) && number.bytes().all(|byte| byte.is_ascii_digit())
        });
    }

    /// `eu-west-2a`, `us-west-2-lax-1a`
    pub(super) fn set_availability_zone(&mut self, zone: &str) {
        set(&mut self.availability_zone, zone, |zone| {
            let last = zone.rsplit('-').next().unwrap_or_default();
            let letters = last.trim_start_matches(|c: char| c.is_ascii_digit());
            is_place(zone) && last.len() > letters.len() && letters.len() == 1
        });
    }

    /// Takes from `other` what is not known here.
    pub(super) fn fill_from(&mut self, other: Self) {
        let fill = |field: &mut Option<String>, value| *field = field.take().or(value);
        fill(&mut self.instance_id, other.instance_id);
        fill(&mut self.instance_type, other.instance_type);
        fill(&mut self.image_id, other.image_id);
        fill(&mut self.region, other.region);
        fill(&mut self.availability_zone, other.availability_zone);
    }
}

fn set(field: &mut Option<String>, value: &str, looks_right: impl Fn(&str) -> bool) {
    const LONGEST: usize = 64;
    let value = value.trim();
    if !value.is_empty() && value.len() <= LONGEST && looks_right(value) {
        *field = Some(value.to_owned());
    }
}

fn is_hexadecimal_after(prefix: &str, id: &str) -> bool {
    id.strip_prefix(prefix).is_some_and(|number| {
        let is_digit = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
        (8..=17).contains(&number.len()) && number.bytes().all(is_digit)
    })
}

fn is_word(word: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !word.is_empty() && word.bytes().all(is_fine)
}

/// Lower-case words with dashes between, the first of letters only.
fn is_place(place: &str) -> bool {
    let first = place.split('-').next().unwrap_or_default();
    let is_short = |word: &str| (1..=16).contains(&word.len());
    first.len() >= 2
        && first.bytes().all(|byte| byte.is_ascii_lowercase())
        && place.split('-').count() >= 3
        && place.split('-').all(|word| is_word(word) && is_short(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Setter = fn(&mut Identity, &str);

    #[test]
    fn only_what_looks_like_amazons_is_believed() {
        let table: [(Setter, &[&str], &[&str]); 5] = [
            (
                Identity::set_instance_id,
                &["i-0123456789abcdef0", "i-12345678", " i-12345678\n"],
                &["i-1234567", "i-0123456789abcdef01", "i-0123456G", "<html>", ""],
            ),
            (
                Identity::set_instance_type,
                &["g5.xlarge", "u-6tb1.112xlarge", "mac2-m2pro.metal", "t3.nano"],
                &["g5", "G5.xlarge", "g5.", ".xlarge", "g5.x.large", "<p>a.b</p>"],
            ),
            (
                Identity::set_image_id,
                &["ami-0123456789abcdef0", "ami-12345678"],
                &["ami-", "i-12345678"],
            ),
            (
                Identity::set_region,
                &["eu-west-2", "us-gov-east-1", "ap-southeast-3", "eu-isoe-west-1"],
                &["eu-west-2a", "EU-west-2", "eu", "europe", "a b"],
            ),
            (
                Identity::set_availability_zone,
                &[
                    "eu-west-2a",
                    "us-west-2-lax-1a",
                    "us-east-1-wl1-bos-wlz-1a",
                    "us-gov-west-1c",
                ],
                &["eu-west-2", "eu-west-2ab", "<html>", "eu west 2a"],
            ),
        ];
        for (set, good, bad) in table {
            for value in good {
                let mut identity = Identity::default();
                set(&mut identity, value);
                assert_ne!(identity, Identity::default(), "{value:?}");
            }
            for value in bad {
                let mut identity = Identity::default();
                set(&mut identity, value);
                assert_eq!(identity, Identity::default(), "{value:?}");
            }
        }
    }

    #[test]
    fn a_document_without_an_instance_is_none() {
        for text in [
            "",
            "{}",
            "[]",
            "null",
            "<html></html>",
            r#"{"instanceId": 7}"#,
            r#"{"instanceId": "x"}"#,
        ] {
            assert_eq!(Identity::from_document(text), None, "{text}");
        }
        // Null for what does not apply is usual in this document.
        let text =
            r#"{"instanceId": "i-12345678", "kernelId": null, "imageId": null, "region": "eu-west-2"}"#;
        let identity = Identity::from_document(text).unwrap();
        assert_eq!(
            (identity.image_id, identity.region.as_deref()),
            (None, Some("eu-west-2"))
        );
    }
}
