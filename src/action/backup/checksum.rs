//! Size and checksums of a backup, as `sha256sum` computes them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// One file, or a directory of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    File,
    Directory,
}

impl Shape {
    /// What stands under this name; links are not followed.
    pub fn of(path: &Path) -> io::Result<Self> {
        let kind = path.symlink_metadata()?.file_type();
        match (kind.is_file(), kind.is_dir()) {
            (true, _) => Ok(Self::File),
            (_, true) => Ok(Self::Directory),
            _ => Err(io::Error::other("it is neither a file nor a directory")),
        }
    }
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksums {
    pub size: u64,
    /// Of the file; of a directory, of the lines `sha256sum *` gives for its files.
    pub sha256: String,
    /// Each file's name below the backup (empty for the file itself) and checksum.
    files: Vec<(String, String)>,
}

impl Checksums {
    /// Reads a backup through. `each` sees every file first, to make it durable.
    pub fn take(path: &Path, shape: Shape, each: impl Fn(&File) -> io::Result<()>) -> io::Result<Self> {
        let mut size = 0;
        let mut measured = Vec::new();
        for file in files(path, shape)? {
            let (length, sha256) = hash(&file, &each)?;
            size += length;
            let name = match shape {
                Shape::File => String::new(),
                Shape::Directory => file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            };
            measured.push((name, sha256));
        }
        let sha256 = match (shape, measured.as_slice()) {
            (Shape::File, [(_, sha256)]) => sha256.clone(),
            _ => of_text(&measured.iter().map(|(name, sha256)| format!("{sha256}  {name}\n")).collect::<String>()),
        };
        Ok(Self { size, sha256, files: measured })
    }

    /// The lines that `sha256sum -c` checks, in the directory that holds `backup`.
    pub fn lines(&self, backup: &str) -> String {
        let line = |(name, sha256): &(String, String)| match name.as_str() {
            "" => format!("{sha256}  {backup}\n"),
            name => format!("{sha256}  {backup}/{name}\n"),
        };
        self.files.iter().map(line).collect()
    }
}

/// All files of a backup, by name.
pub fn files(path: &Path, shape: Shape) -> io::Result<Vec<PathBuf>> {
    if shape == Shape::File {
        return Ok(vec![path.to_owned()]);
    }
    let mut files: Vec<PathBuf> = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.sort();
    Ok(files)
}

/// Of a text.
pub fn of_text(text: &str) -> String {
    hexadecimal(&Sha256::digest(text))
}

fn hash(path: &Path, first: impl Fn(&File) -> io::Result<()>) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    first(&file)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut size = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((size, hexadecimal(&hash.finalize()))),
            length => {
                hash.update(&buffer[..length]);
                size += length as u64;
            }
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_measured_as_sha256sum_would() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("toc.dat"), "toc").unwrap();
        fs::write(directory.path().join("1.dat"), "one").unwrap();
        let taken = Checksums::take(directory.path(), Shape::Directory, |_| Ok(())).unwrap();
        let line = |name: &str, text: &str| format!("{}  {name}\n", of_text(text));
        assert_eq!((taken.size, taken.sha256.as_str()), (6, of_text(&(line("1.dat", "one") + &line("toc.dat", "toc"))).as_str()));
        assert_eq!(taken.lines("tree"), line("tree/1.dat", "one") + &line("tree/toc.dat", "toc"));
    }
}
