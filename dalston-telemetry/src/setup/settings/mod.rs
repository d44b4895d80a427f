//! Environment variables: each is declared once, and the parser, the texts of errors and the tables
//! of the documentation follow from its declaration.
//!
//! Declare variables of your own with [`variables!`](crate::variables). The doc comments are the
//! descriptions:
//!
//! ```
//! use dalston_telemetry::settings::{Variable, WholeNumber};
//! use dalston_telemetry::{Env, variables};
//!
//! variables! {
//!     /// Only for this engine.
//!     pub group WORD_COUNTER = "Word counter";
//!
//!     /// How many words of a task are counted.
//!     pub static MAX_WORDS: Variable<usize> =
//!         Variable::new(&["WORD_COUNTER_MAX_WORDS"], &WholeNumber(1, 10_000)).default("1000");
//! }
//!
//! assert_eq!(MAX_WORDS.read_or_default(&Env::default()), Ok(1000));
//! let env = Env::from_pairs([("WORD_COUNTER_MAX_WORDS", "none")]);
//! assert_eq!(
//!     MAX_WORDS.read(&env).unwrap_err().to_string(),
//!     r#"WORD_COUNTER_MAX_WORDS is "none": expected a whole number from 1 to 10000"#,
//! );
//! assert_eq!(WORD_COUNTER.variables[0].describe().default, "`1000`");
//! ```
//!
#![doc = include_str!("../../../docs/environment.md")]

/// Declares environment variables and the [`Group`](crate::settings::Group) that lists them. See
/// [`settings`](crate::settings).
#[macro_export]
macro_rules! variables {
    (
        $(#[doc = $about:literal])*
        $group_visibility:vis group $GROUP:ident = $title:literal;
        $(
            $(#[doc = $description:literal])+
            $visibility:vis static $NAME:ident: $Variable:ty = $variable:expr;
        )+
    ) => {
        $(#[doc = $about])*
        $group_visibility static $GROUP: $crate::settings::Group =
            $crate::settings::Group::new($title, concat!($($about),*), &[$(&$NAME),+]);
        $(
            $(#[doc = $description])+
            $visibility static $NAME: $Variable = $variable.described(concat!($($description),+));
        )+
    };
}

mod accepts;
pub(crate) mod audit;
pub(crate) mod cloud;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod otlp;
pub(crate) mod queue_exporter;
mod services;
pub(crate) mod traces;
mod variable;

pub use accepts::{
    Accepts, Milliseconds, Number, OneOf, OtelSwitch, Parsed, Seconds, Switch, Text, WholeNumber,
};
pub use audit::AUDIT;
pub use cloud::CLOUD;
pub use logs::{LOGS, NO_COLOR, TERM};
pub use metrics::METRICS;
pub use otlp::OTLP;
pub use queue_exporter::QUEUE_EXPORTER;
pub use services::{DALSTON_DEPLOY_ENV, DALSTON_METRICS_PORT, HOSTNAME, INSTANCE_TYPE, REDIS_URL, SERVICES};
pub use traces::{OTEL_ENABLED, TRACES};
pub use variable::{Declaration, Description, Group, Variable};

/// All variables that this crate reads.
pub static VARIABLES: &[&Group] = &[
    &SERVICES,
    &TRACES,
    &OTLP,
    &METRICS,
    &LOGS,
    &AUDIT,
    &CLOUD,
    &QUEUE_EXPORTER,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;

    variables! {
        /// Only for
        /// this test.
        pub(super) group TEST = "Test";

        /// How many
        /// there are.
        pub(super) static COUNT: Variable<u16> = Variable::new(&["COUNT", "OLD_COUNT"], &WholeNumber(1, 9)).default("3");
        /// The key.
        pub(super) static KEY: Variable<u16> = Variable::new(&["KEY"], &Parsed("a key")).secret();
        /// Wrong.
        pub(super) static WRONG: Variable<u16> = Variable::new(&["WRONG"], &WholeNumber(1, 9)).default("0");
        /// A place.
        pub(super) static PLACE: Variable<String> =
            Variable::new(&["PLACE"], &Text("a place")).default_described("here");
    }

    #[test]
    fn first_name_that_is_set_counts() {
        let env = Env::from_pairs([("COUNT", " "), ("OLD_COUNT", "4")]);
        assert_eq!(COUNT.read(&env), Ok(Some(4)));
        assert_eq!(COUNT.first(&env), Some(("OLD_COUNT", "4")));
        let env = Env::from_pairs([("COUNT", "0"), ("OLD_COUNT", "4")]);
        assert_eq!(
            COUNT.read(&env).unwrap_err().to_string(),
            r#"COUNT is "0": expected a whole number from 1 to 9"#
        );
        assert_eq!(COUNT.read(&Env::default()), Ok(None));
        assert_eq!(COUNT.read_or_default(&Env::default()), Ok(3));
    }

    #[test]
    fn secret_value_is_not_in_error() {
        let env = Env::from_pairs([("KEY", "hunter2")]);
        let error = KEY.read(&env).unwrap_err();
        assert_eq!(
            error.to_string(),
            "KEY is not valid (the value is not shown): expected a key"
        );
    }

    #[test]
    fn group_describes_every_variable() {
        assert_eq!((TEST.title, TEST.about), ("Test", " Only for this test."));
        let described = TEST.variables.iter().map(|variable| variable.describe());
        let shown: Vec<_> = described
            .map(|variable| {
                let names = variable.names.join(" ");
                (names, variable.default, variable.meaning, variable.is_valid)
            })
            .collect();
        let row = |names: &str, default: &str, meaning: &str, is_valid| {
            (names.to_owned(), default.to_owned(), meaning.to_owned(), is_valid)
        };
        assert_eq!(
            shown,
            [
                row("COUNT OLD_COUNT", "`3`", "How many there are.", true),
                row("KEY", "none", "The key.", true),
                row("WRONG", "`0`", "Wrong.", false),
                row("PLACE", "here", "A place.", true),
            ]
        );
    }
}
