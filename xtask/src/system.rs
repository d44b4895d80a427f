//! Programs of the distribution: found, installed with the necessary rights, or requested.

use std::path::Path;

use crate::error::Error;
use crate::steps::Cmd;

/// A program that a command needs.
#[derive(Debug)]
pub(crate) struct Need {
    /// The end of the sentence "… is needed to".
    pub(crate) purpose: &'static str,
    /// A command that succeeds if the program is installed.
    pub(crate) probe: &'static [&'static str],
    /// The package of Debian and Ubuntu that contains it.
    pub(crate) package: &'static str,
}

/// For tests with a real queue.
pub(crate) const REDIS: Need = Need {
    purpose: "test the broker against a real server; each test starts one of its own",
    probe: &["redis-server", "--version"],
    package: "redis-server",
};

/// For tests of the dev platform's page, with its browser.
pub(crate) const CHROMIUM: Need = Need {
    purpose: "test the page of the dev platform in a browser",
    probe: &["chromedriver", "--version"],
    package: "chromium-driver",
};

/// For tests of metrics, rules and boards.
pub(crate) const PROMETHEUS: Need = Need {
    purpose: "test that Prometheus and promtool read the metrics",
    probe: &["promtool", "--version"],
    package: "prometheus",
};

/// For tests with machines whose clocks differ.
pub(crate) const FAKETIME: Need = Need {
    purpose: "test machines whose clocks differ",
    probe: &["faketime", "--version"],
    package: "faketime",
};

/// For tests with machines whose files can't be locked.
pub(crate) const STRACE: Need = Need {
    purpose: "test machines whose files can't be locked",
    probe: &["strace", "--version"],
    package: "strace",
};

/// Installs the missing programs as root on a machine with `apt-get`. Otherwise the error lists
/// them.
pub(crate) fn require(needs: &[Need]) -> Result<(), Error> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !is_installed(need)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        println!("{} is missing; it is needed to {}", need.package, need.purpose);
    }
    let packages = missing
        .iter()
        .map(|need| need.package)
        .collect::<Vec<_>>()
        .join(" ");
    let is_root = Cmd::new("id").arg("-u").output().as_deref() == Some("0");
    let has_apt = Cmd::new("apt-get").arg("--version").output().is_some();
    if !(is_root && has_apt) {
        return Err(Error::new(format!(
            "missing: {packages}; install it and run this again, on Debian or Ubuntu with\n    sudo apt-get install {packages}"
        )));
    }
    let apt = |arguments: &str| {
        Cmd::new("apt-get")
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .run()
    };
    // The package lists may be absent (in a container image) or name removed packages.
    apt("update -q")?;
    apt(&format!("install -q -y --no-install-recommends {packages}"))?;
    if Path::new("/run/systemd/system").exists() {
        // The installation of a server starts it. Tests start their own.
        for need in &missing {
            let _ = Cmd::new("systemctl")
                .args("disable --now")
                .arg(need.package)
                .output();
        }
    }
    match missing.iter().find(|need| !is_installed(need)) {
        None => Ok(()),
        Some(need) => Err(Error::new(format!(
            "{} was installed and `{}` still fails",
            need.package,
            need.probe.join(" ")
        ))),
    }
}

fn is_installed(need: &Need) -> bool {
    let Some((program, arguments)) = need.probe.split_first() else {
        return true;
    };
    arguments
        .iter()
        .fold(Cmd::new(program), Cmd::arg)
        .output()
        .is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_programs_are_not_requested() {
        let shell = Need {
            purpose: "run this test",
            probe: &["sh", "-c", "exit 0"],
            package: "no-such-package",
        };
        require(&[shell]).unwrap();
    }
}
