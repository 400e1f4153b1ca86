# Varnish 7.1 or later, in front of a fleet's hosts. Written by deployer lb varnish --from-serverset, from the set that they
# publish; what is changed by hand goes with the next write.
vcl 4.1;

import directors;

