//! `--out`: the results of tasks as files, [`OutDir`].

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use url::Url;

use super::standard_input;
use crate::cli::failure::Failure;
use crate::protocol::TaskResponseData;
use crate::store::Store;
use crate::store::key::is_plain_name;

/// A directory for the results. Each name begins with that of the processed file.
#[derive(Debug)]
pub(super) struct OutDir {
    root: PathBuf,
    name: fn(&Path) -> String,
}

impl OutDir {
    /// Makes the directory, and checks that no two of the files have the same name.
    pub(super) fn new(root: &Path, files: &[PathBuf]) -> Result<Self, Failure> {
        Self::named("--out", root, files, name)
    }

    /// As [`new`](Self::new), with names without the suffix of the processed file.
    pub(super) fn for_stems(root: &Path, files: &[PathBuf]) -> Result<Self, Failure> {
        let stem = |file: &Path| name(&file.with_extension(""));
        Self::named("--output-dir", root, files, stem)
    }

    fn named(
        option: &str,
        root: &Path,
        files: &[PathBuf],
        name: fn(&Path) -> String,
    ) -> Result<Self, Failure> {
        let failed = |error| Failure::Failed(format!("{option} {}: {error}", root.display()));
        let mut names = HashSet::new();
        if let Some(again) = files
            .iter()
            .map(|file| name(file))
            .find(|name| !names.insert(name.clone()))
        {
            let problem = "the results of one would replace those of the other";
            return Err(Failure::Usage(format!(
                "{option}: two files are named {again}: {problem}"
            )));
        }
        std::fs::create_dir_all(root).map_err(failed)?;
        // The response names its files by URLs.
        let root = std::path::absolute(root).map_err(failed)?;
        Ok(Self { root, name })
    }

    /// Writes the output files of a task, and then its response, in which they have their new
    /// places.
    pub(super) async fn write(
        &self,
        file: &Path,
        response: &TaskResponseData,
        store: &Store,
    ) -> Result<(), String> {
        let mut response = response.clone();
        for artifact in &mut response.produced_artifacts {
            let stored = artifact.storage_locator.clone();
            let last = stored.rsplit('/').next().unwrap_or_default();
            // The name comes from the engine, and must not lead out of the directory.
            if !is_plain_name(last) {
                return Err(format!(
                    "the output file {last:?} has no name that can be written"
                ));
            }
            // The file is in memory already: a limit would protect nothing.
            let content = store
                .read(&stored, usize::MAX)
                .await
                .map_err(|error| error.to_string())?;
            let path = self.replace(file, last, &content)?;
            if let Ok(url) = Url::from_file_path(path) {
                artifact.storage_locator = url.into();
            }
            if response.canonical_transcript_uri.as_deref() == Some(&stored) {
                response.canonical_transcript_uri = Some(artifact.storage_locator.clone());
            }
        }
        self.replace(file, "response.json", &response.to_vec()).map(drop)
    }

    /// Writes a file in one step, so that an interrupted run leaves no half of it.
    pub(super) fn replace(&self, file: &Path, suffix: &str, content: &[u8]) -> Result<PathBuf, String> {
        let path = self.root.join(format!("{}.{suffix}", (self.name)(file)));
        let write = || {
            let mut temporary = tempfile::Builder::new()
                .prefix(".dalston_out_")
                .permissions(permissions())
                .tempfile_in(&self.root)?;
            temporary.write_all(content)?;
            temporary.persist(&path)?;
            std::io::Result::Ok(())
        };
        match write() {
            Ok(()) => Ok(path),
            Err(error) => Err(format!("writing {}: {error}", path.display())),
        }
    }
}

/// The name of a processed file in the directory.
fn name(file: &Path) -> String {
    if standard_input::is_named_by(file) {
        return "stdin".to_owned();
    }
    file.file_name()
        .map_or_else(|| "file".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Those of an ordinary new file, which the umask restricts. A temporary file is private otherwise.
fn permissions() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o666)
}
