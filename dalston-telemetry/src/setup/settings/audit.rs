use super::{Text, Variable, WholeNumber};

variables! {
    /// Records of what was done with jobs and recordings, for services that keep them.
    pub group AUDIT = "Audit records";

    /// Where records go: `stdout`, `stderr`, `off`, or the path of a file.
    pub(crate) static DALSTON_AUDIT_LOG: Variable<String> =
        Variable::new(&["DALSTON_AUDIT_LOG"], &Text("stdout, stderr, off or a path")).default("stdout");

    /// The size in MiB at which a file is renamed and a new one begins.
    pub(crate) static DALSTON_AUDIT_MAX_MB: Variable<u64> =
        Variable::new(&["DALSTON_AUDIT_MAX_MB"], &WholeNumber(1, 1_048_576)).default("100");

    /// How many renamed files are kept.
    pub(crate) static DALSTON_AUDIT_KEEP: Variable<usize> =
        Variable::new(&["DALSTON_AUDIT_KEEP"], &WholeNumber(0, 10_000)).default("10");
}
