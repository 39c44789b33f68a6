//! Stopping and starting containers that somebody else made, and taking away what an undone run of Compose made.

use super::PlaceError;
use super::docker::{Docker, is_object_name, is_status};
use super::inspect::{Network, Volume};
use bollard::models;
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

    /// Gives a container another name.
    pub fn rename_container(&self, id: &str, name: &str) -> Result<(), PlaceError> {
        if !is_object_name(id) || !is_object_name(name) {
            return Err(PlaceError::NoContainer { name: name.to_owned() });
        }
        let options = query::RenameContainerOptionsBuilder::new().name(name).build();
        self.call(format!("rename container {id} to {name}"), self.client().rename_container(id, options))
    }

    /// Removes a container that has been stopped; one that is gone is no error. Its volumes stay.
    pub fn remove_container(&self, name: &str) -> Result<(), PlaceError> {
        if !is_object_name(name) {
            return Err(PlaceError::NoContainer { name: name.to_owned() });
        }
        let options = query::RemoveContainerOptionsBuilder::new().force(true).build();
        let remove = self.client().remove_container(name, Some(options));
        gone_is_well(self.call(format!("remove container {name}"), remove))
    }

    /// Removes a volume that nothing uses; one that is gone is no error.
    pub fn remove_volume(&self, name: &str) -> Result<(), PlaceError> {
        let remove = self.client().remove_volume(name, None::<query::RemoveVolumeOptions>);
        gone_is_well(self.call(format!("remove volume {name}"), remove))
    }

    /// Makes a network that a project expects to be there.
    pub fn make_network(&self, wanted: &Network) -> Result<(), PlaceError> {
        let configs: Vec<models::IpamConfig> = wanted
            .subnets
            .iter()
            .map(|subnet| models::IpamConfig { subnet: Some(subnet.clone()), ..Default::default() })
            .collect();
        let ipam = (!configs.is_empty()).then(|| models::Ipam { config: Some(configs), ..Default::default() });
        let request = models::NetworkCreateRequest {
            name: wanted.name.clone(),
            driver: Some(wanted.driver.clone()).filter(|d| !d.is_empty()),
            internal: Some(wanted.internal),
            ipam,
            options: Some(wanted.options.clone().into_iter().collect()),
            labels: Some(wanted.labels.clone().into_iter().collect()),
            ..Default::default()
        };
        self.call(format!("make network {}", wanted.name), self.client().create_network(request)).map(drop)
    }

    /// Makes a volume that a project expects to be there.
    pub fn make_volume(&self, wanted: &Volume) -> Result<(), PlaceError> {
        let request = models::VolumeCreateRequest {
            name: Some(wanted.name.clone()),
            driver: Some(wanted.driver.clone()).filter(|d| !d.is_empty()),
            driver_opts: Some(wanted.options.clone().into_iter().collect()),
            labels: Some(wanted.labels.clone().into_iter().collect()),
            ..Default::default()
        };
        self.call(format!("make volume {}", wanted.name), self.client().create_volume(request)).map(drop)
    }

    /// Removes a network that nothing uses; one that is gone is no error.
    pub fn remove_network(&self, name: &str) -> Result<(), PlaceError> {
        gone_is_well(self.call(format!("remove network {name}"), self.client().remove_network(name)))
    }
}

fn gone_is_well(done: Result<(), PlaceError>) -> Result<(), PlaceError> {
    match done {
        Err(e) if !is_status(&e, 404) => Err(e),
        _ => Ok(()),
    }
}
