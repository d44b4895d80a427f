//! The fields that all answers but transcripts share: [`AnswerStatus`].

use serde::{Deserialize, Serialize};

use super::output::OutputDefaults;

/// The author of an answer, whether the stage was skipped, and warnings. Its fields stand in the
/// answer itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AnswerStatus {
    /// The id of the engine. The runner fills it in.
    pub engine_id: String,
    /// Whether the stage did nothing, for example because there is no model for the language. The
    /// platform then uses the answers of earlier stages.
    #[serde(default)]
    pub skipped: bool,
    /// The reason for that.
    #[serde(default)]
    pub skip_reason: Option<String>,
    /// Warnings for the user. Those about the recording are added by the runner.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl AnswerStatus {
    pub(super) fn fill_in(&mut self, defaults: &OutputDefaults<'_>) {
        if self.engine_id.is_empty() {
            defaults.engine_id.clone_into(&mut self.engine_id);
        }
        for warning in defaults.warnings {
            if !self.warnings.contains(warning) {
                self.warnings.push(warning.clone());
            }
        }
    }
}

/// The builders of an answer with a field `status`, and its [`StageOutput`](super::StageOutput).
///
/// The module of the answer has its schema, `ANSWER`. `own` checks what is not in the JSON.
/// Further methods of the trait follow it.
macro_rules! answer {
    ($answer:ty, $stage:ident) => {
        $crate::stage::status::answer!($answer, $stage, own = |_| Ok(()),);
    };
    ($answer:ty, $stage:ident, own = $own:expr, $($method:tt)*) => {
        impl $answer {
            /// Marks the stage as skipped, with the reason.
            #[must_use]
            pub fn skipped(mut self, reason: impl Into<String>) -> Self {
                self.status.skipped = true;
                self.status.skip_reason = Some(reason.into());
                self
            }

            /// Adds a warning for the user.
            #[must_use]
            pub fn warning(mut self, warning: impl Into<String>) -> Self {
                self.status.warnings.push(warning.into());
                self
            }
        }

        impl $crate::stage::StageOutput for $answer {
            fn fill_in(&mut self, defaults: &$crate::stage::OutputDefaults<'_>) {
                self.status.fill_in(defaults);
            }

            /// Checks the answer against the schema of the platform, and what is wrong in itself.
            fn validate(&self) -> Result<(), $crate::stage::ValidationError> {
                let own: fn(&Self) -> Result<(), $crate::stage::ValidationError> = $own;
                own(self)?;
                let data = $crate::stage::finite::to_value(self)?;
                ANSWER.check(&data, $crate::stage::Stage::$stage.as_str())
            }

            $($method)*
        }
    };
}
pub(super) use answer;
