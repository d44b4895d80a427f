//! The provider of cryptography for TLS.

use std::process::Command;

use crate::rig::{Closures, answer};

const CHILD: &str = "DALSTON_TEST_TLS_CHILD";

#[test]
fn http_client_of_an_engine_works_after_main() {
    if std::env::var_os(CHILD).is_some() {
        // The arguments are those of the test, so this only prints an error.
        let _ = dalston_engine_sdk::main(Closures::new(|_, _| answer()));
        // Panics without a provider.
        let _ = reqwest::Client::new();
        return;
    }
    // The provider belongs to the process, and other tests install it, too.
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tls::http_client_of_an_engine_works_after_main"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(child.status.success(), "{child:?}");
}
