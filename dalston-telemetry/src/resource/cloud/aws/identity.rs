//! The identity of an instance. Values that do not look like Amazon's are ignored.

use serde_json::Value;

use super::imds::MetadataService;
use crate::resource::cloud::error::MetadataError;
use crate::resource::cloud::provider::Identity;

/// Asks the instance metadata service.
pub(super) async fn ask(service: &MetadataService) -> Result<Identity, MetadataError> {
    let document = service.get("dynamic/instance-identity/document").await?;
    let identity = match document.and_then(|text| from_document(&text)) {
        Some(identity) => identity,
        None => ask_one_by_one(service).await?,
    };
    match identity.instance_id {
        Some(_) => Ok(identity),
        None => Err(MetadataError::InvalidAnswer),
    }
}

/// For services that have no identity document.
async fn ask_one_by_one(service: &MetadataService) -> Result<Identity, MetadataError> {
    type Setter = fn(&mut Identity, &str);
    let mut identity = Identity::default();
    let items: [(&str, Setter); 5] = [
        ("instance-id", set_instance_id),
        ("instance-type", set_instance_type),
        ("placement/availability-zone", set_availability_zone),
        ("placement/region", set_region),
        ("ami-id", set_image_id),
    ];
    for (path, set) in items {
        let value = service.get(&format!("meta-data/{path}")).await?;
        set(&mut identity, &value.unwrap_or_default());
        if identity.instance_id.is_none() {
            return Err(MetadataError::InvalidAnswer);
        }
    }
    Ok(identity)
}

/// Reads the instance identity document. `None` if it is not one.
fn from_document(text: &str) -> Option<Identity> {
    let document: Value = serde_json::from_str(text).ok()?;
    let text = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut identity = Identity::default();
    set_instance_id(&mut identity, text("instanceId"));
    set_instance_type(&mut identity, text("instanceType"));
    set_image_id(&mut identity, text("imageId"));
    set_region(&mut identity, text("region"));
    set_availability_zone(&mut identity, text("availabilityZone"));
    identity.instance_id.is_some().then_some(identity)
}

pub(super) fn set_instance_id(identity: &mut Identity, id: &str) {
    set(&mut identity.instance_id, id, |id| is_hexadecimal_after("i-", id));
}

pub(super) fn set_instance_type(identity: &mut Identity, name: &str) {
    let is_type = |name: &str| {
        name.split_once('.')
            .is_some_and(|(family, size)| is_word(family) && is_word(size))
    };
    set(&mut identity.instance_type, name, is_type);
}

pub(super) fn set_image_id(identity: &mut Identity, id: &str) {
    set(&mut identity.image_id, id, |id| is_hexadecimal_after("ami-", id));
}

/// `eu-west-2`, `us-gov-east-1`
pub(super) fn set_region(identity: &mut Identity, region: &str) {
    set(&mut identity.region, region, |region| {
        let number = region.rsplit('-').next().unwrap_or_default();
        is_place(region) && number.bytes().all(|byte| byte.is_ascii_digit())
    });
}

/// `eu-west-2a`, `us-west-2-lax-1a`
pub(super) fn set_availability_zone(identity: &mut Identity, zone: &str) {
    set(&mut identity.availability_zone, zone, |zone| {
        let last = zone.rsplit('-').next().unwrap_or_default();
        let letters = last.trim_start_matches(|c: char| c.is_ascii_digit());
        is_place(zone) && last.len() > letters.len() && letters.len() == 1
    });
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

/// Whether it consists of lower-case words between dashes, the first of letters only.
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
    fn values_that_do_not_look_like_amazons_are_ignored() {
        let table: [(Setter, &[&str], &[&str]); 5] = [
            (
                set_instance_id,
                &["i-0123456789abcdef0", "i-12345678", " i-12345678\n"],
                &["i-1234567", "i-0123456789abcdef01", "i-0123456G", "<html>", ""],
            ),
            (
                set_instance_type,
                &["g5.xlarge", "u-6tb1.112xlarge", "mac2-m2pro.metal", "t3.nano"],
                &["g5", "G5.xlarge", "g5.", ".xlarge", "g5.x.large", "<p>a.b</p>"],
            ),
            (
                set_image_id,
                &["ami-0123456789abcdef0", "ami-12345678"],
                &["ami-", "i-12345678"],
            ),
            (
                set_region,
                &["eu-west-2", "us-gov-east-1", "ap-southeast-3", "eu-isoe-west-1"],
                &["eu-west-2a", "EU-west-2", "eu", "europe", "a b"],
            ),
            (
                set_availability_zone,
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
    fn a_document_without_instance_is_ignored() {
        for text in [
            "",
            "{}",
            "[]",
            "null",
            "<html></html>",
            r#"{"instanceId": 7}"#,
            r#"{"instanceId": "x"}"#,
        ] {
            assert_eq!(from_document(text), None, "{text}");
        }
        // The document has null for items that do not apply.
        let text =
            r#"{"instanceId": "i-12345678", "kernelId": null, "imageId": null, "region": "eu-west-2"}"#;
        let identity = from_document(text).unwrap();
        assert_eq!(
            (identity.image_id, identity.region.as_deref()),
            (None, Some("eu-west-2"))
        );
    }
}
