//! Environment variables as `env_check` and `env_backup` see them: from the process or
//! from a dotenv file, and what of them is secret.
//!
//! Values are held as [`Secret`]s and leave only into a backup or through a hash. What a
//! variable must be like is the actions' business.

pub(super) mod baseline;
pub(super) mod dotenv;
pub(super) mod private_file;
mod sensitive;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

pub(super) use self::sensitive::is_sensitive;
use crate::outcome::{ErrorKind, StepError};
use crate::secret::Secret;
use crate::target::Variables;

/// The variables runbook itself was started with, also those that children don't inherit.
#[derive(Debug, Clone, Default)]
pub struct ProcessEnvironment {
    /// All of them.
    pub variables: Variables,
    /// Names of those that hold declared secrets.
    pub secrets: BTreeSet<String>,
}

/// A dotenv file larger than this is something else.
const LARGEST_FILE: u64 = 1 << 20;

/// A variable that is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(Secret),
    /// Its bytes are no text.
    NotText,
}

/// Where variables are read, and what stands there.
#[derive(Debug)]
pub(super) struct Source {
    /// For messages: `the environment`, or the file.
    pub(super) name: String,
    values: BTreeMap<String, Value>,
    doubts: BTreeMap<String, String>,
    /// The file can be read by other users.
    open_to_others: Option<u32>,
}

impl Source {
    /// The process's own environment.
    pub(super) fn process(variables: &Variables) -> Self {
        let texts = variables.texts().map(|(name, text)| (name.to_owned(), Value::Text(Secret::new(text))));
        let others = variables.unreadable().map(|name| (name.to_owned(), Value::NotText));
        Self { name: "the environment".into(), values: texts.chain(others).collect(), doubts: BTreeMap::new(), open_to_others: None }
    }

    /// A dotenv file.
    pub(super) fn file(path: &Path) -> Result<Self, StepError> {
        let failed = |reason: String| StepError::new(ErrorKind::Io, format!("cannot read `{}`: {reason}", path.display()));
        let metadata = path.metadata().map_err(|error| failed(error.to_string()))?;
        if !metadata.is_file() || metadata.len() > LARGEST_FILE {
            return Err(failed("it is no dotenv file of at most 1 MiB".into()));
        }
        let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|_| failed("it is not UTF-8 text".into()))?;
        let entries = dotenv::parse(&text).map_err(|problem| {
            StepError::new(ErrorKind::Io, format!("`{}`, line {}: {}", path.display(), problem.line, problem.reason))
                .hint("write one NAME='value' a line")
        })?;
        let mode = metadata.permissions().mode() & 0o777;
        let mut source = Self {
            name: format!("`{}`", path.display()),
            values: BTreeMap::new(),
            doubts: BTreeMap::new(),
            open_to_others: (mode & 0o077 != 0).then_some(mode),
        };
        for entry in entries {
            let twice = source.values.insert(entry.name.clone(), Value::Text(entry.value)).is_some();
            let doubt = if twice { Some("is set twice; the last one counts") } else { entry.doubt };
            if let Some(doubt) = doubt {
                source.doubts.insert(entry.name.clone(), format!("{} {doubt} (line {})", entry.name, entry.line));
            }
        }
        Ok(source)
    }

    /// A variable that is set, perhaps to nothing.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    /// The text of a variable that is set to one.
    pub(super) fn text(&self, name: &str) -> Option<&Secret> {
        match self.values.get(name) {
            Some(Value::Text(text)) if !text.expose().is_empty() => Some(text),
            _ => None,
        }
    }

    /// Every name, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// What is written in a way that programs read differently, for these variables.
    pub(super) fn doubts<'a>(&'a self, names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        names.into_iter().filter_map(|name| self.doubts.get(name).cloned()).collect()
    }

    /// That secrets in it can be read by others.
    pub(super) fn exposure(&self) -> Option<String> {
        let mode = self.open_to_others?;
        Some(format!("{} holds secrets and other users can read it (mode {mode:04o}): chmod 600", self.name))
    }
}

/// `A-Z`, `a-z`, `_` and digits, which do not come first.
pub(super) fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|letter: char| letter.is_ascii_digit())
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}
