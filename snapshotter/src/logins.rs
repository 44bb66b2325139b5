//! Logins that pulls of Kubernetes bring: learnt by the [image service](crate::image_service), asked for by the processes that
//! serve images.
//!
//! They are kept in memory only, the last one of each repository, and lost when this process ends. Who asks is the credential
//! helper (see [`crate::providers`]), over a socket that only root may use:
//!
//! ```text
//! → registry.example/team/app
//! ← {"username":"robot","secret":"…"}      nothing, where there is none
//! ```

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use peelfs::reference::{Place, Reference};
use peelfs_grpc::Socket;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A user's name and password, or the name [`TOKEN`] and an identity token, as helpers of docker give them.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Login {
    pub(crate) username: String,
    pub(crate) secret: String,
}

/// The logins, by repository.
#[derive(Default)]
pub(crate) struct Logins {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    logins: HashMap<String, (u64, Login)>,
    learnt: u64,
}

impl Logins {
    /// Remembers a login; gives the one before.
    pub(crate) fn learn(&self, repository: &str, login: Login) -> Option<Login> {
        let mut known = self.lock();
        known.learnt += 1;
        let learnt = known.learnt;
        let before = known.logins.insert(repository.to_owned(), (learnt, login));
        if known.logins.len() > KEPT {
            let oldest = known.logins.iter().min_by_key(|(_, (learnt, _))| *learnt).map(|(name, _)| name.clone());
            oldest.into_iter().for_each(|oldest| drop(known.logins.remove(&oldest)));
        }
        before.map(|(_, login)| login)
    }

    /// A pull with `login` failed: goes back to the one before, unless there is a later one.
    pub(crate) fn unlearn(&self, repository: &str, login: &Login, before: Option<Login>) {
        let mut known = self.lock();
        if known.logins.get(repository).is_none_or(|(_, now)| now != login) {
            return;
        }
        match before {
            Some(before) => known.logins.insert(repository.to_owned(), (0, before)),
            None => known.logins.remove(repository),
        };
    }

    fn of(&self, repository: &str) -> Option<Login> {
        self.lock().logins.get(repository).map(|(_, login)| login.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers at `socket` for ever.
    pub(crate) async fn serve(self: Arc<Self>, socket: Socket) {
        let mut incoming = pin!(socket.incoming());
        while let Some(stream) = incoming.next().await {
            let (Ok(stream), logins) = (stream, Arc::clone(&self)) else { continue };
            tokio::spawn(async move {
                if let Ok(Err(error)) = tokio::time::timeout(ANSWERED_WITHIN, logins.answer(stream)).await {
                    tracing::debug!(%error, "a login could not be handed over");
                }
            });
        }
    }

    async fn answer(&self, mut stream: tokio::net::UnixStream) -> std::io::Result<()> {
        let mut repository = String::new();
        (&mut stream).take(LONGEST).read_to_string(&mut repository).await?;
        if let Some(login) = self.of(repository.trim_end()) {
            stream.write_all(&serde_json::to_vec(&login)?).await?;
        }
        stream.shutdown().await
    }
}

/// The login for a repository, asked for at `socket` by another process; none where nothing is known or nothing answers.
pub(crate) fn ask(socket: &Path, repository: &str) -> Option<Login> {
    let asked = || -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWERED_WITHIN))?;
        stream.write_all(repository.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let mut said = Vec::new();
        stream.take(LONGEST).read_to_end(&mut said)?;
        Ok(said)
    };
    serde_json::from_slice(&asked().ok()?).ok()
}

/// The repository of an image, as [`ask`] and `PEELFS_REPOSITORY` name it; none of an image that is of no registry.
pub(crate) fn repository(image: &str) -> Option<String> {
    let reference: Reference = image.parse().ok()?;
    match reference.place() {
        Place::Registry(name) => Some(format!("{}/{}", name.authority(), name.repository())),
        _ => None,
    }
}

/// The user's name where the secret is an identity token.
pub(crate) const TOKEN: &str = "<token>";
/// How many repositories are remembered.
const KEPT: usize = 1024;
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of a name or a login.
const LONGEST: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn login(name: &str) -> Login {
        Login { username: name.to_owned(), secret: "s".to_owned() }
    }

    #[test]
    fn the_last_login_that_worked_counts() {
        let logins = Logins::default();
        let name = |repository: &str| logins.of(repository).map(|login| login.username);
        assert!(logins.learn("r/a", login("first")).is_none());
        let before = logins.learn("r/a", login("wrong"));
        logins.unlearn("r/a", &login("wrong"), before);
        assert_eq!(name("r/a").as_deref(), Some("first"));
        // Another pull has brought one meanwhile.
        let before = logins.learn("r/a", login("wrong"));
        logins.learn("r/a", login("later"));
        logins.unlearn("r/a", &login("wrong"), before);
        assert_eq!(name("r/a").as_deref(), Some("later"));
        logins.learn("r/b", login("wrong"));
        logins.unlearn("r/b", &login("wrong"), None);
        assert_eq!(name("r/b"), None);
    }

    #[test]
    fn only_so_many_repositories_are_remembered() {
        let logins = Logins::default();
        (0..=KEPT).for_each(|number| drop(logins.learn(&format!("r/{number}"), login("x"))));
        assert!(logins.of("r/0").is_none() && logins.of("r/1").is_some());
    }

    #[test]
    fn repositories_have_one_name() {
        for (image, wanted) in [
            ("python", Some("docker.io/library/python")),
            ("docker.io/library/python:3.12", Some("docker.io/library/python")),
            (
                "reg.test:5000/team/app:1@sha256:0000000000000000000000000000000000000000000000000000000000000000",
                Some("reg.test:5000/team/app"),
            ),
            ("oci:/etc", None),
        ] {
            assert_eq!(repository(image).as_deref(), wanted, "{image}");
        }
    }
}
