//! The names that the firmware of the machine has. Reading them needs no network.

use std::fs;
use std::path::Path;

use super::identity::{set_instance_id, set_instance_type};
use crate::resource::cloud::provider::Identity;

/// The names in the firmware; empty where Linux shows none.
#[derive(Debug, Clone, Default)]
pub(super) struct Firmware {
    vendor: String,
    /// Other fields that hold Amazon's name on some instances.
    others: Vec<String>,
    /// The identifier of a Xen guest.
    hypervisor: String,
    product: String,
    asset: String,
    foreign_system: bool,
}

/// Whether the machine is an EC2 instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Ec2,
    Elsewhere,
    /// There are no names, as in some containers and on old instances.
    Unknown,
}

impl Firmware {
    pub(super) fn read() -> Self {
        Self {
            foreign_system: !cfg!(target_os = "linux"),
            ..Self::below(Path::new("/sys"))
        }
    }

    fn below(root: &Path) -> Self {
        let text = |path: &str| {
            let text = fs::read_to_string(root.join(path)).unwrap_or_default();
            text.trim().to_owned()
        };
        let name = |name: &str| text(&format!("class/dmi/id/{name}"));
        let others = ["board_vendor", "bios_vendor", "bios_version", "product_version"];
        Self {
            vendor: name("sys_vendor"),
            others: others.map(name).into(),
            hypervisor: text("hypervisor/uuid"),
            product: name("product_name"),
            asset: name("board_asset_tag"),
            foreign_system: false,
        }
    }

    /// The firmware of this vendor, with the other names of Amazon's.
    #[cfg(test)]
    pub(super) fn of(vendor: &str) -> Self {
        Self {
            vendor: vendor.to_owned(),
            product: "g5.xlarge".to_owned(),
            asset: "i-0123456789abcdef0".to_owned(),
            ..Self::default()
        }
    }

    pub(super) fn verdict(&self) -> Verdict {
        let names_amazon = |text: &String| text == "Amazon EC2" || text.ends_with(".amazon");
        let is_xen_guest = self.hypervisor.to_ascii_lowercase().starts_with("ec2");
        if names_amazon(&self.vendor) || self.others.iter().any(names_amazon) || is_xen_guest {
            return Verdict::Ec2;
        }
        match self.vendor.as_str() {
            _ if self.foreign_system => Verdict::Elsewhere,
            "" | "Xen" => Verdict::Unknown,
            _ => Verdict::Elsewhere,
        }
    }

    /// On current instances, the tag of the board is the id and the name of the product the type.
    pub(super) fn identity(&self) -> Identity {
        let mut identity = Identity::default();
        if self.verdict() == Verdict::Ec2 {
            set_instance_id(&mut identity, &self.asset);
            set_instance_type(&mut identity, &self.product);
        }
        identity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firmware(files: &[(&str, &str)]) -> Firmware {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{content}\n")).unwrap();
        }
        Firmware::below(root.path())
    }

    #[test]
    fn the_vendor_decides_whether_it_is_ec2() {
        let table: &[(&[(&str, &str)], Verdict)] = &[
            (&[("class/dmi/id/sys_vendor", "Amazon EC2")], Verdict::Ec2),
            (
                &[
                    ("class/dmi/id/sys_vendor", "Xen"),
                    ("class/dmi/id/bios_version", "4.11.amazon"),
                ],
                Verdict::Ec2,
            ),
            (
                &[("hypervisor/uuid", "ec2e1916-9099-7caf-fd21-012345abcdef")],
                Verdict::Ec2,
            ),
            (&[("class/dmi/id/sys_vendor", "Xen")], Verdict::Unknown),
            (&[("class/dmi/id/sys_vendor", "LENOVO")], Verdict::Elsewhere),
            (&[("class/dmi/id/sys_vendor", "QEMU")], Verdict::Elsewhere),
            (&[("class/dmi/id/sys_vendor", "Google")], Verdict::Elsewhere),
            (&[], Verdict::Unknown),
        ];
        for (files, expected) in table {
            assert_eq!(firmware(files).verdict(), *expected, "{files:?}");
        }
    }

    #[test]
    fn firmware_of_ec2_holds_instance_id_and_type() {
        let board = |vendor| {
            firmware(&[
                ("class/dmi/id/sys_vendor", vendor),
                ("class/dmi/id/board_asset_tag", "i-0123456789abcdef0"),
                ("class/dmi/id/product_name", "g5.xlarge"),
            ])
        };
        let identity = board("Amazon EC2").identity();
        assert_eq!(identity.instance_id.as_deref(), Some("i-0123456789abcdef0"));
        assert_eq!(identity.instance_type.as_deref(), Some("g5.xlarge"));
        assert_eq!(board("LENOVO").identity(), Identity::default());
        let xen = firmware(&[
            ("class/dmi/id/sys_vendor", "Xen"),
            ("class/dmi/id/bios_version", "4.11.amazon"),
            ("class/dmi/id/product_name", "HVM domU"),
        ]);
        assert_eq!(xen.identity(), Identity::default());
    }
}
