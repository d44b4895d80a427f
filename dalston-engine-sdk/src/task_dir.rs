//! The directory of a task: [`TaskDir`], and its removal: [`TaskFiles`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tempfile::TempDir;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::error::{TaskError, WorkerFault};

/// A directory that is made on first use. Many tasks need none.
#[derive(Debug)]
pub(crate) struct TaskDir {
    prefix: &'static str,
    root: PathBuf,
    path: OnceLock<PathBuf>,
    /// A path that does not exist. Its name is random, so that no other process creates it.
    nowhere: OnceLock<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Unused,
    Made(TempDir),
    Closed,
}

impl TaskDir {
    pub(crate) fn new(prefix: &'static str, root: &Path) -> Self {
        Self {
            prefix,
            root: root.to_owned(),
            path: OnceLock::new(),
            nowhere: OnceLock::new(),
            state: Mutex::default(),
        }
    }

    /// The path of the directory, which is made if need be.
    pub(crate) fn path(&self) -> io::Result<&Path> {
        if let Some(path) = self.path.get() {
            return Ok(path);
        }
        let mut state = self.state();
        let path = match &*state {
            State::Unused => {
                let dir = tempfile::Builder::new()
                    .prefix(self.prefix)
                    .tempdir_in(&self.root)?;
                let path = dir.path().to_owned();
                *state = State::Made(dir);
                path
            }
            State::Made(dir) => dir.path().to_owned(),
            State::Closed => return Err(io::Error::new(io::ErrorKind::NotFound, "the task has ended")),
        };
        Ok(self.path.get_or_init(|| path))
    }

    /// The path of the directory. If it can't be made, that is logged, and nothing exists at the
    /// path.
    pub(crate) fn path_or_nowhere(&self) -> &Path {
        self.path().unwrap_or_else(|error| {
            tracing::error!(root = %self.root.display(), %error, "task_directory_not_made");
            self.nowhere.get_or_init(|| {
                self.root
                    .join(format!("{}{}", self.prefix, Uuid::new_v4().simple()))
            })
        })
    }

    /// Takes the directory out for its removal. From now on none is made.
    pub(crate) fn close(&self) -> Option<TempDir> {
        match std::mem::replace(&mut *self.state(), State::Closed) {
            State::Made(dir) => Some(dir),
            State::Unused | State::Closed => None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The files of a task. The directory is removed on a thread that may block.
#[derive(Debug)]
pub(crate) struct TaskFiles {
    dir: Arc<TaskDir>,
    removals: TaskTracker,
    /// Another directory that holds the input.
    input: Option<Arc<Self>>,
}

impl TaskFiles {
    pub(crate) fn new(prefix: &'static str, root: &Path, removals: &TaskTracker) -> Self {
        Self {
            dir: Arc::new(TaskDir::new(prefix, root)),
            removals: removals.clone(),
            input: None,
        }
    }

    /// Keeps the directory that holds the input for as long as this one.
    pub(crate) fn with_input(mut self, input: Option<Arc<Self>>) -> Self {
        self.input = input;
        self
    }

    pub(crate) fn dir(&self) -> Arc<TaskDir> {
        Arc::clone(&self.dir)
    }

    /// The path of the directory, which is made if need be.
    pub(crate) fn path(&self) -> Result<&Path, TaskError> {
        self.dir.path().map_err(|error| {
            TaskError::from(error)
                .with_fault(WorkerFault::Disk)
                .context("making a directory for the task")
        })
    }
}

impl Drop for TaskFiles {
    fn drop(&mut self) {
        // Without a runtime it is removed on this thread.
        if let Some(dir) = self.dir.close()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            self.removals.spawn_blocking_on(move || drop(dir), &runtime);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_exists_from_its_first_use_to_the_end() {
        let root = tempfile::tempdir().unwrap();
        let count = || std::fs::read_dir(root.path()).unwrap().count();
        let dir = TaskDir::new("task_", root.path());
        assert_eq!(count(), 0);
        let path = dir.path().unwrap().to_owned();
        assert!(path.is_dir());
        assert_eq!(
            (dir.path().unwrap(), dir.path_or_nowhere(), count()),
            (&*path, &*path, 1)
        );
        drop(dir.close());
        assert_eq!(count(), 0);

        let unused = TaskDir::new("task_", root.path());
        assert!(unused.close().is_none());
        assert!(unused.path().is_err(), "it would never be removed");
        assert_eq!(count(), 0);
    }

    #[test]
    fn the_path_of_an_impossible_directory_does_not_exist() {
        let dir = TaskDir::new("task_", Path::new("/nonexistent/root"));
        assert!(dir.path().is_err());
        assert!(!dir.path_or_nowhere().exists());
    }

    #[test]
    fn a_failed_directory_is_made_later_at_a_path_of_its_own() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("root");
        let (dir, other) = (TaskDir::new("task_", &root), TaskDir::new("task_", &root));
        let nowhere = dir.path_or_nowhere().to_owned();
        assert_eq!(dir.path_or_nowhere(), nowhere);
        assert_ne!(other.path_or_nowhere(), nowhere);
        assert!(dir.path().is_err(), "there is still no directory");
        std::fs::create_dir(&root).unwrap();
        let made = dir.path().unwrap();
        assert!(made.is_dir());
        assert_eq!(dir.path_or_nowhere(), made);
    }
}
