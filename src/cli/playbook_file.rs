//! From a file name and options to a plan: shared by everything that takes a playbook.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Failure;
use super::session::Settings;
use crate::journal::Selection;
use crate::plan::{Inputs, Plan, build, parse_assignment};
use crate::playbook::load::{Loaded, load};
use crate::source::SourceError;

/// Values for a playbook's parameters, and which of its steps to take.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct InputArgs {
    /// A parameter's value; may be repeated
    #[arg(long = "param", short = 'p', value_name = "NAME=VALUE")]
    params: Vec<String>,
    /// Parameters from a YAML or JSON file; --param wins
    #[arg(long, value_name = "FILE")]
    params_file: Option<PathBuf>,
    /// Only these steps, by id or tag; may be repeated
    #[arg(long, value_name = "ID|TAG", value_delimiter = ',')]
    only: Vec<String>,
    /// All but these steps, by id or tag; may be repeated
    #[arg(long, value_name = "ID|TAG", value_delimiter = ',')]
    skip: Vec<String>,
    /// From this step on, in the order of the plan
    #[arg(long, value_name = "ID")]
    from: Option<String>,
}

impl InputArgs {
    pub fn inputs(&self, settings: &Settings, resolve: bool) -> Result<Inputs, Failure> {
        Ok(Inputs {
            params: self.given()?,
            variables: settings.variables.clone(),
            resolve,
            selection: Selection { only: self.only.clone(), skip: self.skip.clone(), from: self.from.clone() },
            directory: current_directory()?,
        })
    }

    fn given(&self) -> Result<Map<String, Value>, Failure> {
        let mut given = match &self.params_file {
            Some(path) => read_params(path)?,
            None => Map::new(),
        };
        for assignment in &self.params {
            let (name, value) = parse_assignment(assignment).map_err(Failure::usage)?;
            given.insert(name, value);
        }
        Ok(given)
    }
}

fn read_params(path: &Path) -> Result<Map<String, Value>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    serde_yaml::from_str(&text)
        .map_err(|error| Failure::usage(format!("{} holds no parameters: {error}", path.display())).hint("write one `name: value` a line"))
}

pub(super) fn current_directory() -> Result<PathBuf, Failure> {
    std::env::current_dir().map_err(|error| Failure::engine(format!("the current directory can't be used: {error}")))
}

pub(super) fn load_playbook(file: &Path) -> Result<Loaded, Failure> {
    load(file).map_err(|error| match error {
        SourceError::Read { .. } => Failure::usage(error.to_string()),
        SourceError::Encoding { .. } | SourceError::TooLarge { .. } => Failure::invalid(error.to_string()),
    })
}

pub(super) fn build_plan(file: &Path, inputs: &Inputs) -> Result<Plan, Failure> {
    Ok(build(file, load_playbook(file)?, inputs)?)
}
