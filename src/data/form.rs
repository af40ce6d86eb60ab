//! The form that a model was trained in, and in which it wants its prompts.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a text reaches a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// As it is.
    Plain,
    /// As a user's message, rendered by the chat template.
    Chat,
}

impl Form {
    /// The form of a model that says nothing of it: its chat template is there to be used.
    pub fn of_template(has_template: bool) -> Self {
        if has_template { Self::Chat } else { Self::Plain }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain text",
            Self::Chat => "a user's message in the chat template",
        })
    }
}
