
sub vcl_backend_fetch {
  # A connection for each fetch, closed with its answer: so each fetch is steered, and a drain waits for fetches alone.
  # Varnish uses pooled connections again for as long as requests come, whatever backend_idle_timeout says, and nobody else
  # can close them without a loss: a thread takes one and only then waits for the body of a POST.
  set bereq.http.Connection = "close";
}
