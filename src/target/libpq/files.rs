//! Password and service files.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{Host, SOCKET_DIRECTORIES, Settings, Unusable};
use crate::secret::Secret;
use crate::target::spec::Variables;

/// The lines of a `.pgpass`, or none.
pub struct PasswordFile(Vec<Vec<String>>);

impl PasswordFile {
    /// Reads the file given, or the one in the home directory. As in libpq a file
    /// that others may read is not used.
    pub fn open(given: Option<PathBuf>, variables: &Variables, warnings: &mut Vec<String>) -> Self {
        let path = given.or_else(|| variables.home().map(|home| home.join(".pgpass")));
        Self(path.and_then(|path| password_text(&path, warnings)).map_or_else(Vec::new, |text| text.lines().filter_map(fields).collect()))
    }

    /// The password of the first line that fits.
    pub fn find(&self, host: &Host, database: &str, user: &str) -> Option<Secret> {
        let port = host.port.to_string();
        let wanted = [match_name(host), &port, database, user];
        self.0
            .iter()
            .find(|line| line.iter().zip(wanted).all(|(pattern, value)| pattern == "*" || unescaped(pattern) == value))
            .map(|line| Secret::new(unescaped(&line[4])))
    }
}

/// The name under which libpq looks for a host's password.
fn match_name(host: &Host) -> &str {
    if SOCKET_DIRECTORIES.contains(&host.name.as_str()) { "localhost" } else { &host.name }
}

/// A line that gives `password` for every database of `host`.
pub fn password_line(host: &Host, user: &str, password: &Secret) -> String {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");

    format!("{}:{}:*:{}:{}\n", escaped(match_name(host)), host.port, escaped(user), escaped(password.expose()))
}

fn password_text(path: &Path, warnings: &mut Vec<String>) -> Option<String> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() {
        warnings.push(format!("password file {} is not a plain file and was ignored", path.display()));
        return None;
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        warnings.push(format!("password file {} may be read by others and was ignored; run: chmod 0600 {0}", path.display()));
        return None;
    }
    std::fs::read_to_string(path).map_err(|error| warnings.push(format!("cannot read password file {}: {error}", path.display()))).ok()
}

/// Splits at colons that are not escaped; the escapes stay, because `\*` is not `*`.
fn fields(line: &str) -> Option<Vec<String>> {
    if line.starts_with('#') {
        return None;
    }
    let mut fields = vec![String::new()];
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        let count = fields.len();
        let last = fields.last_mut()?;
        match letter {
            '\\' => {
                last.push(letter);
                last.extend(letters.next());
            }
            ':' if count < 5 => fields.push(String::new()),
            _ => last.push(letter),
        }
    }
    (fields.len() == 5).then_some(fields)
}

fn unescaped(field: &str) -> String {
    let mut text = String::new();
    let mut letters = field.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => text.extend(letters.next()),
            _ => text.push(letter),
        }
    }
    text
}

/// The settings of a service, from the user's file or else the system's.
pub fn service(name: &str, variables: &Variables) -> Result<Settings, Unusable> {
    let user_file = variables.get("PGSERVICEFILE").map(PathBuf::from);
    let user_file = user_file.or_else(|| variables.home().map(|home| home.join(".pg_service.conf")));
    let system = PathBuf::from(variables.get("PGSYSCONFDIR").unwrap_or("/etc/postgresql-common")).join("pg_service.conf");
    let files: Vec<PathBuf> = user_file.into_iter().chain([system]).collect();
    for file in &files {
        if let Ok(text) = std::fs::read_to_string(file)
            && let Some(settings) = section(&text, name, file)?
        {
            return Ok(settings);
        }
    }
    let looked: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    Err(Unusable::new(format!("there is no service `{name}`")).hint(format!("Looked in {}.", looked.join(" and "))))
}

fn section(text: &str, name: &str, file: &Path) -> Result<Option<Settings>, Unusable> {
    let mut settings = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            if settings.is_some() {
                break;
            }
            if header.strip_suffix(']') == Some(name) {
                settings = Some(Settings::new());
            }
        } else if let Some(settings) = &mut settings {
            let place = || format!("{}:{}", file.display(), number + 1);
            let (key, value) = line.split_once('=').ok_or_else(|| Unusable::new(format!("{}: there is no `=` in this line", place())))?;
            let key = key.trim();
            if key == "service" || key.starts_with("ldap:") || !super::PARAMETERS.iter().any(|(known, _)| *known == key) {
                return Err(Unusable::new(format!("{}: `{key}` is not supported in a service file", place())));
            }
            settings.entry(key.to_owned()).or_insert_with(|| value.trim().to_owned());
        }
    }
    Ok(settings)
}
