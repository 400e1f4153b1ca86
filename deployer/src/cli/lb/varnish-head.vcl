# Varnish 7.1 or later, in front of the workers.
vcl 4.1;

import directors;
