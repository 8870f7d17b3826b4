//! The backups in a directory, by their manifests.

use std::io;
use std::path::{Path, PathBuf};

use super::checksum::Shape;
use super::manifest::{MANIFEST, Manifest, Verified, beside};

/// A complete backup.
#[derive(Debug, Clone, PartialEq)]
pub struct Backup {
    pub path: PathBuf,
    pub shape: Shape,
    pub manifest: Manifest,
    /// How it was proven, if it was.
    pub verified: Option<Verified>,
}

impl Backup {
    /// The backup under this name, with its manifest; `None`: it has none.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        let shape = Shape::of(path)?;
        let Some(manifest) = Manifest::read(path)? else { return Ok(None) };
        let verified = Verified::read(path).filter(|verified| verified.sha256 == manifest.sha256);
        Ok(Some(Self { path: path.to_owned(), shape, manifest, verified }))
    }
}

/// What a directory holds.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// All complete backups, the newest first.
    pub backups: Vec<Backup>,
    /// Manifests that can't be read or whose backup is not there, with the reason.
    pub unusable: Vec<(PathBuf, io::Error)>,
}

/// Looks at every manifest in a directory. Links are not followed.
pub fn catalogue(directory: &Path) -> io::Result<Catalogue> {
    let mut found = Catalogue::default();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str().and_then(|name| name.strip_suffix(MANIFEST)) else { continue };
        let path = directory.join(name);
        match Backup::open(&path) {
            Ok(backup) => found.backups.extend(backup),
            Err(error) => found.unusable.push((beside(&path, MANIFEST), error)),
        }
    }
    found.backups.sort_by(|a, b| (b.manifest.created_at, &b.path).cmp(&(a.manifest.created_at, &a.path)));
    found.unusable.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}
