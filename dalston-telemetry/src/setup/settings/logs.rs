use super::{Parsed, Text, Variable};
use crate::logs::format::LogFormat;

variables! {
    /// They never decide which spans are exported.
    pub group LOGS = "Log lines";

    /// Which events become lines, by target and level: `info,dalston_engine_sdk=debug`.
    pub(crate) static RUST_LOG: Variable<String> = Variable::new(
        &["RUST_LOG"],
        &Text("level, target or target=level, with a level of trace, debug, info, warn, error or off"),
    )
    .default_described("`LOG_LEVEL`");

    /// The same where `RUST_LOG` is not set. Python's names of levels work, too.
    pub(crate) static LOG_LEVEL: Variable<String> = Variable::new(
        &["LOG_LEVEL", "DALSTON_LOG_LEVEL"],
        &Text("trace, debug, info, warning, error, critical or off"),
    )
    .default_described("`info`; `off` for `transcribe` and `doctor`");

    /// The form of lines. `auto`: readable on a terminal, JSON elsewhere.
    pub(crate) static DALSTON_LOG_FORMAT: Variable<LogFormat> =
        Variable::new(&["DALSTON_LOG_FORMAT"], &Parsed(LogFormat::ACCEPTED)).default("auto");

    /// Set to anything: no colours on a terminal.
    pub static NO_COLOR: Variable<String> = Variable::new(&["NO_COLOR"], &Text("any text"));

    /// The kind of terminal. With `dumb`, there are no colours.
    pub static TERM: Variable<String> = Variable::new(&["TERM"], &Text("a name"));
}
