//! Images that come and go: loaded from a saved one, pulled by digest, and names taken away.

use super::docker::{Docker, engine_error, is_image_reference, is_status};
use super::stream::WRITE_PIECES;
use super::watch::{TICK, Watch};
use super::{Command, PlaceError};
use bollard::errors::Error as EngineError;
use bollard::query_parameters as query;
use bytes::Bytes;
use futures_util::StreamExt;
use std::io::{self, Read};
use std::time::Duration;
use tokio::sync::mpsc;

/// The longest that a pull may stand without a word of the engine.
const PULL_STALL: Duration = Duration::from_secs(300);

impl Docker {
    /// Brings images back that `docker save` wrote, by the names that they were saved under. `command` limits it.
    pub fn load_images(&self, mut tar: impl Read, command: &Command) -> Result<(), PlaceError> {
        let watch = Watch::new(command, self.endpoint().to_owned());
        let (pieces, mut receiver) = mpsc::channel::<Result<Bytes, io::Error>>(WRITE_PIECES);
        let body = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
        let client = self.patient_client();
        let load = self.handle().spawn(async move {
            let options = query::ImportImageOptionsBuilder::new().quiet(true).build();
            let mut answers = client.import_image_stream(options, body, None);
            while let Some(answer) = answers.next().await {
                answer?;
            }
            Ok::<(), EngineError>(())
        });
        let fed = self.feed(&mut tar, pieces, &watch);
        let waited = fed.and_then(|()| {
            loop {
                watch.check()?;
                if load.is_finished() {
                    return Ok(());
                }
                std::thread::sleep(TICK / 10);
            }
        });
        if let Err(broken) = waited {
            load.abort();
            return Err(broken);
        }
        match self.run(load) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(engine_error("load images", e)),
            Err(e) => Err(PlaceError::Docker { what: "load images".into(), source: e.into() }),
        }
    }

    /// Pulls an image by its digest, `name@sha256:…`, without a name and a password.
    pub fn pull_image(&self, digest: &str, platform: &str) -> Result<(), PlaceError> {
        let what = format!("pull image {digest}");
        if !is_image_reference(digest) {
            let source = io::Error::from(io::ErrorKind::InvalidInput);
            return Err(PlaceError::Docker { what, source: source.into() });
        }
        let options = query::CreateImageOptionsBuilder::new().from_image(digest).platform(platform).build();
        let mut answers = self.patient_client().create_image(Some(options), None, None);
        let late = || EngineError::from(io::Error::from(io::ErrorKind::TimedOut));
        self.call(what, async {
            while let Some(answer) = tokio::time::timeout(PULL_STALL, answers.next()).await.map_err(|_| late())? {
                answer?;
            }
            Ok(())
        })
    }

    /// Removes a name of an image. `false`: it stays, because it is the last one and a container uses the image.
    pub fn release_image_name(&self, name: &str) -> Result<bool, PlaceError> {
        if !is_image_reference(name) {
            return Ok(true);
        }
        match self.untag_image(name) {
            Err(e) if is_status(&e, 409) => Ok(false),
            Err(e) if !is_status(&e, 404) => Err(e),
            _ => Ok(true),
        }
    }
}
