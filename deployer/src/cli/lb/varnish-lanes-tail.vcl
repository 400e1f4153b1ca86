
sub vcl_hash {
  # Two versions' copies are kept apart. Pages are copies of lane 0, and name the lane of the version that made them: have
  # them expire, with their grace, before the former version is retired (`bake`).
  hash_data("lane " + req.http.X-Deployer-Lane);
}

sub vcl_backend_response {
  # A lane that nobody has yet is answered by whatever is current: no copy of that may wait for the lane's turn. Workers
  # that name their lane in this header, too, let Varnish see it.
  if (bereq.http.X-Deployer-Lane && beresp.http.X-Deployer-Lane &&
      beresp.http.X-Deployer-Lane != bereq.http.X-Deployer-Lane) {
    set beresp.ttl = 0s;
    set beresp.grace = 0s;
    set beresp.uncacheable = true;
  }
}
