//! PostgreSQL's client programs as distributions install them: side by side, each version in a
//! directory of its own, of which PATH has one at most.

use std::path::PathBuf;

/// `*` stands for one directory.
const PLACES: &[&str] = &[
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/libexec/postgresql*",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/libpq/bin",
    "/usr/local/opt/libpq/bin",
];

/// Directories that may hold client programs, whether they are in PATH or not.
pub fn client_directories() -> impl Iterator<Item = PathBuf> {
    PLACES.iter().flat_map(|place| matching(place))
}

/// `15` of `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, as well of `16beta1`.
pub fn major_version(version: &str) -> Option<u32> {
    let number = version.split_once(") ")?.1;
    number.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// Directories that fit a path with at most one `*`.
fn matching(place: &str) -> Vec<PathBuf> {
    let Some((before, after)) = place.split_once('*') else { return vec![place.into()] };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let fits = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with(prefix);
    let mut found: Vec<PathBuf> = entries.filter(fits).map(|entry| PathBuf::from(format!("{}{after}", entry.path().display()))).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(major_version("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(major_version("pg_dump (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_version("something else"), None);
    }
}
