//! Programs that must come from the distribution: found, or installed where we may, or asked for.

use std::path::Path;

use crate::error::Error;
use crate::steps::Cmd;

/// A program that a chore cannot do without.
#[derive(Debug)]
pub(crate) struct Need {
    /// What it is needed for, to finish the sentence "… is needed to".
    pub(crate) purpose: &'static str,
    /// A command that succeeds if it is there.
    pub(crate) probe: &'static [&'static str],
    /// The package of Debian and Ubuntu that has it.
    pub(crate) package: &'static str,
}

/// For everything that talks to a real queue.
pub(crate) const REDIS: Need = Need {
    purpose: "test the broker against a real server; each test starts one of its own",
    probe: &["redis-server", "--version"],
    package: "redis-server",
};

/// Makes sure that all of `needs` are there: root on a machine with `apt-get` has them installed, others are told.
pub(crate) fn require(needs: &[Need]) -> Result<(), Error> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !is_there(need)).collect();
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
    // Lists may be absent (a bare container image) or old (the packages they name are gone).
    apt("update -q")?;
    apt(&format!("install -q -y --no-install-recommends {packages}"))?;
    if Path::new("/run/systemd/system").exists() {
        // Servers are started by being installed. Tests start their own, and nobody asked for another.
        for need in &missing {
            let _ = Cmd::new("systemctl")
                .args("disable --now")
                .arg(need.package)
                .output();
        }
    }
    match missing.iter().find(|need| !is_there(need)) {
        None => Ok(()),
        Some(need) => Err(Error::new(format!(
            "{} was installed and `{}` still fails",
            need.package,
            need.probe.join(" ")
        ))),
    }
}

fn is_there(need: &Need) -> bool {
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
    fn what_is_there_is_not_asked_for() {
        let shell = Need {
            purpose: "run this test",
            probe: &["sh", "-c", "exit 0"],
            package: "no-such-package",
        };
        require(&[shell]).unwrap();
    }
}
