"""Gateways: public protocols in front of a mesh, so that clients which know nothing of infermesh can use it.

`inference` is the one meaning; `oip_grpc` and `oip_rest` translate to and from it, and hold no meaning of their
own. A gateway is a client of the data plane: it may run on any machine that reaches the nodes, and holds nothing
that would be missed when it ends. `nodes.gateway_command` composes and starts them.
"""
