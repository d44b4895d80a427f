//! The arguments of the command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Arg, ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde_json::{Map, Value};

use super::failure::Failure;
use super::language;
use super::task_options;
use super::transcribe::format::OutputFormat;
use crate::config::{DeviceChoice, EngineConfig, PrecisionChoice};
use crate::engine::EngineInfo;
use crate::model_id::ModelId;
use crate::stage::Stage;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Process files on this machine and print the results, without Redis, S3 or a collector
    Transcribe(Box<TranscribeArgs>),
    /// Join a live deployment: take tasks from Redis, with their files in S3
    #[cfg(feature = "worker")]
    Run(EngineArgs),
    /// Print the identity and capabilities of this engine as JSON
    Describe(DescribeArgs),
    /// Check this machine for the engine, and give advice for missing parts
    Doctor(EngineArgs),
}

#[derive(Debug, Args)]
pub(super) struct TranscribeArgs {
    /// The files, processed in this order. - is the standard input
    #[arg(required_unless_present_any = ["inputs", "previous"], value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,

    #[command(flatten)]
    pub(super) engine: EngineArgs,

    /// The language of the recordings: a code, a locale or an English name, or auto to detect it
    #[arg(long, value_name = "LANGUAGE", value_parser = language::code)]
    language: Option<String>,

    /// Transcribe the speech, or translate it into English
    #[arg(long, value_enum)]
    task: Option<TaskArg>,

    /// Whether to find the times of each segment
    #[arg(long, value_name = "true|false", action = ArgAction::Set)]
    timestamps: Option<bool>,

    /// A key of the configuration of each task: JSON, or else text
    #[arg(long = "config", value_name = "KEY=VALUE")]
    configs: Vec<Assignment>,

    /// A further input of each task, by the slot under which the engine asks for it
    #[arg(long = "input", value_name = "SLOT=FILE")]
    pub(super) inputs: Vec<Assignment>,

    /// The answer of an earlier stage for each task: its response.json, or the data in it
    #[arg(long, value_name = "STAGE=FILE")]
    pub(super) previous: Vec<Assignment>,

    /// Write FILE.response.json and the output files of each task to DIR, over earlier ones
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,

    /// The options of tasks that the engine adds.
    #[arg(skip)]
    own: Map<String, Value>,

    /// Print transcripts in this format, or write them to --output-dir in several
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "FORMAT",
        conflicts_with = "json"
    )]
    pub(super) output_format: Vec<OutputFormat>,

    /// Write each transcript to DIR, under the name of its file with the suffix of the format
    #[arg(long, value_name = "DIR", requires = "output_format")]
    pub(super) output_dir: Option<PathBuf>,

    /// Print one line of JSON per file
    #[arg(long)]
    pub(super) json: bool,

    /// Print the trace of each file as a waterfall
    #[arg(long)]
    pub(super) trace: bool,

    /// Print the metrics that changed
    #[arg(long)]
    pub(super) metrics: bool,
}

#[derive(Debug, Args)]
pub(super) struct DescribeArgs {
    /// Print the engine.yaml for the catalog of the platform
    #[arg(long)]
    pub(super) engine_yaml: bool,

    /// Print the row of MODEL, or of the default model, for the model registry of the platform
    #[arg(long, value_name = "MODEL", num_args = 0..=1, require_equals = true, conflicts_with = "engine_yaml")]
    pub(super) model_yaml: Option<Option<String>>,
}

/// The arguments that `transcribe`, `run` and `doctor` share.
#[derive(Debug, Args)]
pub(super) struct EngineArgs {
    /// The model: a directory, or a name that the engine knows
    #[arg(long, value_name = "DIR")]
    model: Option<String>,

    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long)]
    device: Option<DeviceChoice>,

    /// The number format to compute in: auto, float32, float16, bfloat16 or int8
    #[arg(long)]
    precision: Option<PrecisionChoice>,
}

/// Whether the engine has settings of its own, which `--set` changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnSettings {
    Yes,
    No,
}

/// `KEY=VALUE`.
#[derive(Debug, Clone)]
pub(super) struct Assignment {
    pub(super) key: String,
    pub(super) value: String,
}

impl FromStr for Assignment {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err("expected a name, an equals sign and a value"),
        }
    }
}

impl Assignment {
    /// The value as JSON, or as text if it is not JSON.
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.value).unwrap_or_else(|_| self.value.as_str().into())
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TaskArg {
    Transcribe,
    Translate,
}

#[derive(Debug, Parser)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

const TRANSCRIBE: &str = "transcribe";
/// The option of [`main_with`](super::main_with).
pub(super) const SET: &str = "set";

/// Reads the command line of an engine's binary, which has settings of its own or not.
///
/// # Errors
///
/// The output of clap: a usage error, the help or the version.
pub(super) fn parse(
    info: &EngineInfo,
    settings: OwnSettings,
    args: impl IntoIterator<Item = OsString>,
) -> Result<Command, clap::Error> {
    let mut args = args.into_iter().peekable();
    let program = args
        .peek()
        .map(PathBuf::from)
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_else(|| info.id.clone());
    let stages: Vec<&str> = info.stages.iter().map(Stage::as_str).collect();
    let about = format!(
        "The engine {} {} ({}) for the Dalston platform",
        info.id,
        info.version,
        stages.join(", ")
    );
    let mut command = CommandLine::command()
        .name(program.clone())
        .bin_name(program)
        .version(info.version.clone())
        .about(about)
        .after_help("Defaults come from DALSTON_* and OTEL_* variables.");
    if settings == OwnSettings::Yes {
        command = command.arg(
            Arg::new(SET)
                .long(SET)
                .value_name("KEY=VALUE")
                .help("A setting of the engine: JSON, or else text")
                .value_parser(Assignment::from_str)
                .action(ArgAction::Append)
                .global(true),
        );
    }
    command = command.mut_subcommand(TRANSCRIBE, |command| task_options::add(command, &info.options));
    let matches = command.try_get_matches_from_mut(args)?;
    let mut command_line =
        CommandLine::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    if let (Command::Transcribe(args), Some(matches)) =
        (&mut command_line.command, matches.subcommand_matches(TRANSCRIBE))
    {
        args.own = task_options::read(matches, &info.options);
    }
    Ok(command_line.command)
}

impl EngineArgs {
    /// Overrides the environment with the arguments.
    pub(super) fn apply(&self, config: &mut EngineConfig) {
        if let Some(model) = &self.model {
            config.model = Some(ModelId::new(model.as_str()));
        }
        if let Some(device) = self.device {
            config.device = device;
        }
        if let Some(precision) = self.precision {
            config.precision = precision;
        }
    }
}

impl TranscribeArgs {
    /// The configuration of each task.
    ///
    /// # Errors
    ///
    /// If a key is given twice.
    pub(super) fn config(&self) -> Result<Map<String, Value>, Failure> {
        let mut config = self.platform_config();
        for assignment in &self.configs {
            if config.insert(assignment.key.clone(), assignment.json()).is_some() {
                let problem = format!("the key {} of the configuration is given twice", assignment.key);
                return Err(Failure::Usage(problem));
            }
        }
        Ok(config)
    }

    /// The format of standard output, if it is one of `--output-format`.
    ///
    /// # Errors
    ///
    /// If there are several.
    pub(super) fn printed_format(&self) -> Result<Option<OutputFormat>, Failure> {
        match self.output_format.as_slice() {
            [] => Ok(None),
            _ if self.output_dir.is_some() => Ok(None),
            [format] => Ok(Some(*format)),
            _ => Err(Failure::Usage(
                "several --output-format: expected --output-dir with them".to_owned(),
            )),
        }
    }

    /// The options with keys of the platform.
    fn platform_config(&self) -> Map<String, Value> {
        let mut config = self.own.clone();
        if let Some(language) = &self.language {
            config.insert("language".to_owned(), language.as_str().into());
        }
        if let Some(task) = self.task {
            let task = match task {
                TaskArg::Transcribe => "transcribe",
                TaskArg::Translate => "translate",
            };
            config.insert("task".to_owned(), task.into());
        }
        if let Some(timestamps) = self.timestamps {
            let granularity = if timestamps { "segment" } else { "none" };
            config.insert("timestamp_granularity".to_owned(), granularity.into());
        }
        config
    }
}
