//! `runbook stamp`: the environment's name, kept in the target database itself.

use std::io::Write;

use super::session::Settings;
use super::{Exit, Failure};
use crate::engine::EngineError;
use crate::secret::Secret;
use crate::target::{ConnectionSpec, Expect, LedgerMode, Stamp, Targets};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The environment, e.g. production; without it the stamp is shown
    #[arg(value_name = "ENVIRONMENT")]
    environment: Option<String>,
    /// The database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    url: String,
}

pub(super) async fn run(args: &Args, settings: &Settings) -> Result<Exit, Failure> {
    let spec = ConnectionSpec {
        name: "target".into(),
        url: Secret::new(&args.url),
        expect: Expect::default(),
        ledger: LedgerMode::Target,
        environment: None,
    };
    let targets = Targets::new("stamp", vec![spec], &settings.variables);
    let identity = targets.identity("target").await.map_err(EngineError::from)?;
    let text = match &args.environment {
        Some(environment) => {
            targets.stamp("target", environment).await.map_err(EngineError::from)?;
            format!("{} is stamped `{environment}`", identity.database_name())
        }
        None => match targets.read_stamp("target").await.map_err(EngineError::from)? {
            Stamp::Environment(environment) => format!("{} is stamped `{environment}`", identity.database_name()),
            _ => format!("{} has no stamp", identity.database_name()),
        },
    };
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(Exit::Done)
}
