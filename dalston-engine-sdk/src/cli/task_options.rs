//! The arguments for the options of tasks that an engine adds.

use clap::{Arg, ArgMatches, Command};
use serde_json::{Map, Value};

use crate::task_option::TaskOption;

const HEADING: &str = "Options of the engine";

/// Adds an argument for each option without one: `beam_size` is `--beam-size`.
pub(super) fn add(command: Command, options: &[TaskOption]) -> Command {
    let known: Vec<String> = command
        .get_arguments()
        .filter_map(|arg| arg.get_long().map(str::to_owned))
        .collect();
    let new = options.iter().filter_map(|option| {
        let long = option.name.replace('_', "-");
        (!known.contains(&long)).then(|| arg(option, long))
    });
    command.args(new.collect::<Vec<_>>())
}

fn arg(option: &TaskOption, long: String) -> Arg {
    let parser = option.clone();
    let arg = Arg::new(option.name)
        .long(long)
        // The spelling of programs in Python.
        .alias(option.name)
        .help(option.help)
        .help_heading(HEADING)
        .value_parser(move |text: &str| parser.read(text));
    if option.is_flag {
        arg.num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("true|false")
    } else {
        arg.value_name("VALUE").allow_hyphen_values(true)
    }
}

/// The configuration of each task that these arguments give.
pub(super) fn read(matches: &ArgMatches, options: &[TaskOption]) -> Map<String, Value> {
    let value = |option: &TaskOption| {
        // An option that has the name of another argument is that argument.
        let given = matches.try_get_one::<Value>(option.name).ok().flatten();
        given.cloned().or_else(|| option.local_default.clone())
    };
    options
        .iter()
        .filter_map(|option| Some((option.name.to_owned(), value(option)?)))
        .collect()
}
