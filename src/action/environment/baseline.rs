//! A baseline: what variables were, as hashes that give no value away.
//!
//! PBKDF2 with a random salt makes guessing slow, not impossible: whoever has the file can
//! test guesses of a short value. So it is readable by its owner alone.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use jiff::Timestamp;
use ring::pbkdf2::{self, PBKDF2_HMAC_SHA512};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::private_file::{Existing, write};
use crate::outcome::{ErrorKind, StepError};
use crate::secret::Secret;

/// What OWASP advises for this function; a value takes some tens of milliseconds.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(210_000).expect("it is not zero");
/// More would only serve to keep runbook busy.
const MOST_ITERATIONS: u32 = 10_000_000;
const FUNCTION: &str = "pbkdf2-hmac-sha512";
const HASH_LENGTH: usize = 32;

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::action) struct Baseline {
    /// Of this format; 1.
    version: u32,
    pub(in crate::action) recorded_at: Timestamp,
    run: String,
    step: String,
    function: String,
    iterations: NonZeroU32,
    salt: String,
    /// Hash by name; `null` where the variable was not set, or empty.
    variables: BTreeMap<String, Option<String>>,
}

/// What has become of a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::action) enum Change {
    None,
    Other,
    Appeared,
    Vanished,
    /// It was not recorded.
    Unknown,
}

/// Who records, and when.
#[derive(Debug, Clone)]
pub(in crate::action) struct Origin {
    pub(in crate::action) run: String,
    pub(in crate::action) step: String,
    pub(in crate::action) at: Timestamp,
}

impl Baseline {
    /// Hashes these variables; an empty text counts as not set.
    fn record(variables: &BTreeMap<String, Option<Secret>>, origin: &Origin) -> Result<Self, StepError> {
        let mut salt = [0; 32];
        SystemRandom::new()
            .fill(&mut salt)
            .map_err(|_| StepError::new(ErrorKind::Io, "the system gives no random numbers for the baseline's salt"))?;
        let mut baseline = Self {
            version: 1,
            recorded_at: origin.at,
            run: origin.run.clone(),
            step: origin.step.clone(),
            function: FUNCTION.into(),
            iterations: ITERATIONS,
            salt: hexadecimal(&salt),
            variables: BTreeMap::new(),
        };
        for (name, value) in variables {
            let hash = value.as_ref().filter(|value| !value.expose().is_empty()).map(|value| baseline.hash(name, value));
            baseline.variables.insert(name.clone(), hash);
        }
        Ok(baseline)
    }

    /// Reads the file; `None`: there is none.
    pub(in crate::action) fn read(path: &Path) -> Result<Option<Self>, StepError> {
        let unusable =
            |reason: String| StepError::new(ErrorKind::Io, format!("the baseline `{}` cannot be used: {reason}", path.display()));
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| unusable(error.to_string()))?,
        };
        let again = "record it anew, under another name or after moving this file away";
        let baseline: Self =
            serde_json::from_str(&text).map_err(|error| unusable(format!("it is damaged or no baseline ({error})")).hint(again))?;
        if baseline.version != 1 || baseline.function != FUNCTION || baseline.iterations.get() > MOST_ITERATIONS {
            return Err(unusable("it is of a kind that this version of runbook does not know".into()).hint(again));
        }
        Ok(Some(baseline))
    }

    /// Hashes variables and writes the file. One that this step of this run wrote in an attempt
    /// that got no further is replaced, for that attempt may have had another environment.
    pub(in crate::action) fn put(path: &Path, variables: &BTreeMap<String, Option<Secret>>, origin: &Origin) -> Result<(), StepError> {
        let ours = |found: &Self| found.run == origin.run && found.step == origin.step;
        let existing = match Self::read(path) {
            Ok(Some(found)) if ours(&found) => Existing::Replace,
            _ => Existing::Keep,
        };
        Self::record(variables, origin)?.write(path, existing)
    }

    fn write(&self, path: &Path, existing: Existing) -> Result<(), StepError> {
        let text = serde_json::to_string_pretty(self).map_err(io::Error::from).map(|text| text + "\n");
        text.and_then(|text| write(path, &text, existing)).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                StepError::new(ErrorKind::Io, format!("the baseline `{}` exists already; nothing was overwritten", path.display()))
                    .hint("give each run its own, e.g. with `{{ run.id }}` in the name, or move the old one away")
            }
            _ => StepError::new(ErrorKind::Io, format!("cannot write the baseline `{}`: {error}", path.display())),
        })
    }

    /// Compares a variable with what it was.
    pub(in crate::action) fn compare(&self, name: &str, now: Option<&Secret>) -> Change {
        match (self.variables.get(name), now.filter(|value| !value.expose().is_empty())) {
            (None, _) => Change::Unknown,
            (Some(None), None) => Change::None,
            (Some(None), Some(_)) => Change::Appeared,
            (Some(Some(_)), None) => Change::Vanished,
            (Some(Some(hash)), Some(value)) if self.matches(name, value, hash) => Change::None,
            _ => Change::Other,
        }
    }

    /// When it was recorded, for people.
    pub(in crate::action) fn moment(&self) -> String {
        self.recorded_at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
    }

    fn hash(&self, name: &str, value: &Secret) -> String {
        let mut hash = [0; HASH_LENGTH];
        pbkdf2::derive(PBKDF2_HMAC_SHA512, self.iterations, &self.salt_of(name), value.expose().as_bytes(), &mut hash);
        hexadecimal(&hash)
    }

    fn matches(&self, name: &str, value: &Secret, hash: &str) -> bool {
        let Some(hash) = bytes(hash).filter(|hash| hash.len() == HASH_LENGTH) else { return false };
        pbkdf2::verify(PBKDF2_HMAC_SHA512, self.iterations, &self.salt_of(name), value.expose().as_bytes(), &hash).is_ok()
    }

    /// With the name in it, or equal values of two variables would show.
    fn salt_of(&self, name: &str) -> Vec<u8> {
        [self.salt.as_bytes(), &[0], name.as_bytes()].concat()
    }
}

/// That others can read the file.
pub(in crate::action) fn exposure(path: &Path) -> Option<String> {
    let mode = path.metadata().ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| format!("other users can read the baseline `{}` (mode {mode:04o}): chmod 600", path.display()))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hexadecimal: &str) -> Option<Vec<u8>> {
    let digits = hexadecimal.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin { run: "run".into(), step: "step".into(), at: "2026-02-03T04:05:06Z".parse().unwrap() }
    }

    #[test]
    fn changes_are_seen_and_values_are_not_there() {
        let value = |text: &str| Some(Secret::new(text));
        let variables = [("A", value("hunter2")), ("B", value("hunter2")), ("C", None), ("D", value(""))];
        let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("baseline.json");
        assert_eq!(Baseline::read(&path).unwrap(), None);
        Baseline::record(&variables, &origin()).unwrap().write(&path, Existing::Keep).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("hunter2"));
        let baseline = Baseline::read(&path).unwrap().unwrap();
        assert_ne!(baseline.variables["A"], baseline.variables["B"], "equal values do not show");
        let compare = |name: &str, now: Option<&str>| baseline.compare(name, now.map(Secret::new).as_ref());
        assert_eq!(compare("A", Some("hunter2")), Change::None);
        assert_eq!(compare("A", Some("hunter3")), Change::Other);
        assert_eq!(compare("B", None), Change::Vanished);
        assert_eq!(compare("C", Some("x")), Change::Appeared);
        assert_eq!((compare("C", None), compare("D", Some("")), compare("D", None)), (Change::None, Change::None, Change::None));
        assert_eq!(compare("E", None), Change::Unknown);
        assert_eq!(exposure(&path), None);
    }

    #[test]
    fn a_file_that_is_no_baseline_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("baseline.json");
        let recorded = Baseline::record(&BTreeMap::new(), &origin()).unwrap();
        let good = serde_json::to_string(&recorded).unwrap();
        for text in [
            String::new(),
            "{}".into(),
            good.replace("\"version\":1", "\"version\":2"),
            good.replace("pbkdf2", "md5"),
            good.replace("210000", "4000000000"),
            good.replace("210000", "0"),
        ] {
            std::fs::write(&path, &text).unwrap();
            let error = Baseline::read(&path).unwrap_err();
            assert!(error.message.contains("cannot be used") && !error.hints.is_empty(), "{text}: {error:?}");
        }
    }
}
