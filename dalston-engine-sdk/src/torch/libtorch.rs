//! The libtorch of this process.

use std::path::{Path, PathBuf};

/// The version of libtorch that `tch` supports. Another version may fail to start, or compute wrong
/// results.
pub(super) const WANTED_VERSION: &str = "2.11.0";

/// The libtorch that is loaded into this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Libtorch {
    /// The directory of `libtorch_cpu.so`; `None` if `/proc` does not show it.
    pub(super) directory: Option<PathBuf>,
    /// The version according to the files around that directory, for example `2.11.0+cu130`.
    pub(super) version: Option<String>,
}

impl Libtorch {
    /// Whether this is the version that this crate supports; `None` if the version is unknown.
    pub(super) fn version_fits(&self) -> Option<bool> {
        let version = self.version.as_deref()?;
        // The part after the plus sign names the version of CUDA, which does not change the ABI.
        Some(version.split('+').next() == Some(WANTED_VERSION))
    }
}

/// Finds the libtorch of this process.
pub(super) fn libtorch() -> Libtorch {
    let directory = directory();
    let version = directory.as_deref().and_then(version_beside);
    Libtorch { directory, version }
}

pub(super) fn directory() -> Option<PathBuf> {
    directory_in(&std::fs::read_to_string("/proc/self/maps").ok()?)
}

fn directory_in(maps: &str) -> Option<PathBuf> {
    let library = maps.lines().find_map(|line| {
        // Address, permissions, offset, device, inode, and the path, which may contain spaces.
        let path = &line[line.find('/')?..];
        path.ends_with("/libtorch_cpu.so").then_some(path)
    })?;
    Path::new(library).parent().map(Path::to_owned)
}

/// `lib` is `…/torch/lib` in a wheel and `…/libtorch/lib` in the zip distribution.
fn version_beside(lib: &Path) -> Option<String> {
    let root = lib.parent()?;
    if let Ok(version) = std::fs::read_to_string(root.join("build-version")) {
        return Some(version.trim().to_owned());
    }
    if let Ok(python) = std::fs::read_to_string(root.join("version.py"))
        && let Some(version) = python.lines().find_map(|line| {
            line.strip_prefix("__version__ = ")
                .map(|value| value.trim().trim_matches(['\'', '"']).to_owned())
        })
    {
        return Some(version);
    }
    let header = std::fs::read_to_string(root.join("include/torch/headeronly/version.h")).ok()?;
    let number = |name: &str| {
        header.lines().find_map(|line| {
            line.strip_prefix("#define ")?
                .strip_prefix(name)?
                .trim()
                .parse::<u32>()
                .ok()
        })
    };
    Some(format!(
        "{}.{}.{}",
        number("TORCH_VERSION_MAJOR")?,
        number("TORCH_VERSION_MINOR")?,
        number("TORCH_VERSION_PATCH")?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_of_this_process_is_found_with_its_version() {
        // A use of tch, so that the test binary links to the library.
        let _ = tch::get_num_threads();

        let found = libtorch();

        let directory = found.directory.clone().unwrap();
        assert!(
            directory.join("libtorch_cpu.so").exists(),
            "{}",
            directory.display()
        );
        assert_eq!(found.version_fits(), Some(true), "{found:?}");
    }

    #[test]
    fn path_with_spaces_is_read_whole() {
        let maps = "7f00-7f01 r--p 00000000 fe:00 12 /lib/libc.so.6\n\
                    7f02-7f03 r-xp 00000000 fe:00 13                 /opt/my torch/lib/libtorch_cpu.so\n";
        assert_eq!(directory_in(maps), Some(PathBuf::from("/opt/my torch/lib")));
        assert_eq!(directory_in("7f00-7f01 rw-p 00000000 00:00 0 [heap]\n"), None);
    }

    #[test]
    fn version_of_each_distribution_is_read() {
        let root = tempfile::tempdir().unwrap();
        let lib = root.path().join("lib");
        assert_eq!(version_beside(&lib), None);

        let headers = root.path().join("include/torch/headeronly");
        std::fs::create_dir_all(&headers).unwrap();
        std::fs::write(
            headers.join("version.h"),
            "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 9\n#define TORCH_VERSION_PATCH 1\n",
        )
        .unwrap();
        assert_eq!(version_beside(&lib), Some("2.9.1".to_owned()));

        std::fs::write(
            root.path().join("version.py"),
            "x = 1\n__version__ = '2.11.0+cu130'\n",
        )
        .unwrap();
        assert_eq!(version_beside(&lib), Some("2.11.0+cu130".to_owned()));

        std::fs::write(root.path().join("build-version"), "2.11.0+cpu\n").unwrap();
        assert_eq!(version_beside(&lib), Some("2.11.0+cpu".to_owned()));
    }

    #[test]
    fn another_version_does_not_fit() {
        let of = |version: Option<&str>| {
            Libtorch {
                directory: None,
                version: version.map(str::to_owned),
            }
            .version_fits()
        };
        assert_eq!(of(Some("2.11.0+cu130")), Some(true));
        assert_eq!(of(Some("2.11.1")), Some(false));
        assert_eq!(of(None), None);
    }
}
