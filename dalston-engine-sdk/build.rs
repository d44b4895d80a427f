//! With the feature `tch`, writes libtorch's directory into this package's test binaries, so that
//! they start without `LD_LIBRARY_PATH`. Without it there is nothing to do: torch-sys, which names
//! the directory, is not built.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Some(lib) = std::env::var_os("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.to_string_lossy());
    }
}
