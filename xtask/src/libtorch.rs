//! libtorch for the engines that use it: an existing one, or one from PyPI in the git-ignored
//! `.libtorch/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::error::Error;
use crate::steps::{Cmd, human, root};
use crate::system::{Need, require};

/// The version that `tch` 0.24 is written for.
pub(crate) const VERSION: &str = "2.11.0";

/// The CPU part of torch needs two of CUDA's libraries even without a GPU, because its profiler
/// links to them.
const WHEELS: [&str; 3] = [
    "torch==2.11.0",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cupti==13.0.85",
];

/// Extracts the files that a Rust program needs at compile time and at run time. The rest of the
/// torch wheel, more than half of it, is CUDA and Python.
const UNPACK: &str = r#"
import sys, zipfile
target, wheels = sys.argv[1], sys.argv[2:]
libraries = {
    "torch/lib/libtorch_cpu.so", "torch/lib/libtorch.so", "torch/lib/libc10.so", "torch/lib/libgomp.so.1",
    "nvidia/cu13/lib/libcudart.so.13", "nvidia/cu13/lib/libcupti.so.13", "torch/version.py",
}
found = set()
for wheel in wheels:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            notice = ".dist-info/" in name and not name.endswith("RECORD")
            if name in libraries or name.startswith("torch/include/") or notice:
                archive.extract(name, target)
                found.add(name)
if libraries - found:
    sys.exit("not in the wheels: " + " ".join(sorted(libraries - found)))
"#;

/// The part of libtorch to install.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Computation on the CPU.
    Cpu,
    /// The CUDA back end and everything that it needs except the driver.
    Cuda,
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// Finds or installs libtorch and the tools to build against it. Returns its directory.
pub(crate) fn set_up(variant: Variant) -> Result<PathBuf, Error> {
    require(&[Need {
        purpose: "compile the C++ half of tch, libtorch's binding",
        probe: &["c++", "--version"],
        package: "g++",
    }])?;
    let ours = root().join(".libtorch");
    // .cargo/config.toml sets LIBTORCH to `.libtorch/torch` unless it is set.
    let chosen = std::env::var_os("LIBTORCH").map_or_else(|| ours.join("torch"), PathBuf::from);
    if !same_place(&chosen, &ours.join("torch")) {
        check_existing(&chosen)?;
        println!("libtorch: using {} (LIBTORCH)", chosen.display());
        return Ok(chosen);
    }
    let marker = ours.join("installed");
    let installed = fs::read_to_string(&marker).unwrap_or_default();
    // The CUDA variant contains the other one.
    if [variant, Variant::Cuda]
        .iter()
        .any(|have| installed == receipt(*have))
    {
        println!("libtorch: {VERSION} is in {}", ours.display());
        return Ok(chosen);
    }
    install(variant, &ours)?;
    fs::write(&marker, receipt(variant)).map_err(Error::at(&marker))?;
    Ok(chosen)
}

/// The value of `LD_LIBRARY_PATH` for programs that are linked without a path to libtorch, such as
/// doctests.
pub(crate) fn library_path(libtorch: &Path) -> std::ffi::OsString {
    let mut path = libtorch.join("lib").into_os_string();
    if let Some(others) = std::env::var_os("LD_LIBRARY_PATH").filter(|others| !others.is_empty()) {
        path.push(":");
        path.push(others);
    }
    path
}

fn receipt(variant: Variant) -> String {
    format!("{VERSION} {}\n", variant.name())
}

fn same_place(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn check_existing(libtorch: &Path) -> Result<(), Error> {
    if !libtorch.join("lib/libtorch_cpu.so").is_file() {
        return Err(Error::new(format!(
            "LIBTORCH is \"{}\": expected a directory with lib/libtorch_cpu.so; unset it to have libtorch fetched",
            libtorch.display()
        )));
    }
    match version_of(libtorch) {
        Some(version) if version.split('+').next() != Some(VERSION) => Err(Error::new(format!(
            "LIBTORCH is \"{}\", which has version {version}: tch needs {VERSION}; unset it to have libtorch fetched",
            libtorch.display()
        ))),
        _ => Ok(()),
    }
}

fn version_of(libtorch: &Path) -> Option<String> {
    if let Ok(version) = fs::read_to_string(libtorch.join("build-version")) {
        return Some(version.trim().to_owned());
    }
    let python = fs::read_to_string(libtorch.join("version.py")).ok()?;
    let version = python
        .lines()
        .find_map(|line| line.strip_prefix("__version__ = "))?;
    Some(version.trim().trim_matches(['\'', '"']).to_owned())
}

fn install(variant: Variant, ours: &Path) -> Result<(), Error> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(Error::new(format!(
            "libtorch can be fetched for Linux on x86-64 only; install libtorch {VERSION} and set LIBTORCH to it"
        )));
    }
    match variant {
        Variant::Cpu => println!(
            "libtorch: the Whisper example needs it. Fetching version {VERSION} from PyPI's torch wheel, 544 MB, \
             and unpacking its CPU half, about 530 MB, into {}. This happens once.\n\
             (To use an existing one, set LIBTORCH to its directory and run this again. For a GPU: cargo xtask setup --cuda.)",
            ours.display()
        ),
        Variant::Cuda => println!(
            "libtorch: fetching version {VERSION} with CUDA from PyPI, 2.7 GB, 4.6 GB on disk, into {}. This happens once.",
            ours.display()
        ),
    }
    require(&[Need {
        purpose: "fetch libtorch (pip)",
        probe: &["python3", "-m", "pip", "--version"],
        package: "python3-pip",
    }])?;
    let started = Instant::now();
    let wheels = ours.join("wheels");
    let partial = ours.join("partial");
    // From an interrupted attempt.
    remove(&partial)?;
    for directory in [&wheels, &partial] {
        fs::create_dir_all(directory).map_err(Error::at(directory))?;
    }
    match variant {
        Variant::Cpu => {
            // One at a time, so that an interrupted attempt keeps the completed downloads.
            for wheel in WHEELS {
                download(wheel, &partial, &wheels)?;
            }
            println!("unpacking");
            // pip's temporary files.
            remove(&partial)?;
            let unpack = Cmd::new("python3").arg("-c").arg(UNPACK).arg(&partial);
            wheels_in(&wheels)?.iter().fold(unpack, Cmd::arg).run_unshown()?;
        }
        Variant::Cuda => pip(&partial)
            .args("install --no-compile --only-binary=:all: --target")
            .arg(&partial)
            .arg(WHEELS[0])
            .run()?,
    }
    for entry in fs::read_dir(&partial).map_err(Error::at(&partial))? {
        let entry = entry.map_err(Error::at(&partial))?;
        let place = ours.join(entry.file_name());
        remove(&place)?;
        fs::rename(entry.path(), &place).map_err(Error::at(&place))?;
    }
    remove(&partial)?;
    remove(&wheels)?;
    println!(
        "libtorch: {VERSION} is in {}, after {}",
        ours.display(),
        human(started.elapsed())
    );
    Ok(())
}

fn download(wheel: &str, partial: &Path, wheels: &Path) -> Result<(), Error> {
    // pip names the file with underscores: `nvidia_cuda_cupti-13.0.85-…`.
    let prefix = wheel.replace("==", "-");
    let (name, version) = prefix.rsplit_once('-').unwrap_or((&prefix, ""));
    let prefix = format!("{}-{version}", name.replace('-', "_"));
    let is_it = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
    };
    if wheels_in(wheels)?.iter().any(is_it) {
        println!("{wheel} is already downloaded");
        return Ok(());
    }
    println!("fetching {wheel}");
    // For a fixed version of Python, because no Python runs the files. The platforms are those of
    // the wheels.
    pip(partial)
        .args("download --no-deps --only-binary=:all: --implementation cp --python-version 3.12")
        .args("--platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64")
        .args("--platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest")
        .arg(partial)
        .arg(wheel)
        .run_unshown()?;
    // The download is complete.
    for path in wheels_in(partial)? {
        let place = wheels.join(path.file_name().unwrap_or_default());
        fs::rename(&path, &place).map_err(Error::at(&place))?;
    }
    Ok(())
}

/// pip with long timeouts. Its temporary files are in `temporary`, because half a gigabyte is too
/// much for some `/tmp`.
fn pip(temporary: &Path) -> Cmd {
    Cmd::new("python3")
        .args("-m pip --retries 10 --timeout 60 --disable-pip-version-check --no-input --no-cache-dir")
        .env("TMPDIR", temporary)
}

fn wheels_in(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(directory).map_err(Error::at(directory))?;
    Ok(entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .collect())
}

fn remove(path: &Path) -> Result<(), Error> {
    let result = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::at(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_without_libtorch_is_refused() {
        let error = check_existing(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(
            error.contains("/nonexistent") && error.contains("unset it"),
            "{error}"
        );
    }

    #[test]
    fn other_libtorch_version_is_refused() {
        let libtorch = std::env::temp_dir().join(format!("xtask-libtorch-{}", std::process::id()));
        fs::create_dir_all(libtorch.join("lib")).unwrap();
        fs::write(libtorch.join("lib/libtorch_cpu.so"), "").unwrap();
        fs::write(libtorch.join("version.py"), "__version__ = '2.7.1+cu126'\n").unwrap();

        let refused = check_existing(&libtorch).unwrap_err().to_string();
        fs::write(libtorch.join("version.py"), "__version__ = '2.11.0+cu130'\n").unwrap();
        let accepted = check_existing(&libtorch);
        fs::remove_dir_all(&libtorch).unwrap();

        assert!(refused.contains("2.7.1+cu126"), "{refused}");
        accepted.unwrap();
    }
}
