//! Stopping, starting and removing containers that somebody else made. Nothing is created here.

use super::PlaceError;
use super::docker::{Docker, is_object_name, is_status};
use bollard::query_parameters as query;

impl Docker {
    /// Stops a container as `docker stop` does: its own signal, its own time, then the hard way. One that does not run
    /// stays as it is.
    pub fn stop_container(&self, name: &str) -> Result<(), PlaceError> {
        let missing = || PlaceError::NoContainer { name: name.to_owned() };
        if !is_object_name(name) {
            return Err(missing());
        }
        let options = query::StopContainerOptionsBuilder::new().build();
        let stop = self.patient_client();
        match self.call(format!("stop container {name}"), stop.stop_container(name, Some(options))) {
            Err(e) if is_status(&e, 404) => Err(missing()),
            Err(e) if !is_status(&e, 304) => Err(e),
            _ => Ok(()),
        }
    }

    /// Starts a container that is there; one that runs goes on.
    pub fn start_container(&self, name: &str) -> Result<(), PlaceError> {
        let missing = || PlaceError::NoContainer { name: name.to_owned() };
        if !is_object_name(name) {
            return Err(missing());
        }
        match self.call(format!("start container {name}"), self.client().start_container(name, None)) {
            Err(e) if is_status(&e, 404) => Err(missing()),
            Err(e) if !is_status(&e, 304) => Err(e),
            _ => Ok(()),
        }
    }

    /// Removes a container that is there; its volumes stay, those without a name too.
    pub fn remove_container(&self, name: &str) -> Result<(), PlaceError> {
        if !is_object_name(name) {
            return Err(PlaceError::NoContainer { name: name.to_owned() });
        }
        let options = query::RemoveContainerOptionsBuilder::new().force(true).v(false).build();
        match self.call(format!("remove container {name}"), self.client().remove_container(name, Some(options))) {
            Err(e) if !is_status(&e, 404) => Err(e),
            _ => Ok(()),
        }
    }
}
