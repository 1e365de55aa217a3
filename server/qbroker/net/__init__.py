"""The net room: sockets, handshakes and the watch over silent peers.

It knows who speaks and whether they may; it has never heard of a queue. What a peer
wants done is handed to the engine as a frame, and comes back as bytes.

    listener.py    who may connect, who is paused, and how everybody is told to go
    connection.py  one socket: bytes in, frames out, and back
    session.py     one conversation: greeting, authentication, who may say what
    watch.py       one timer for all: late handshakes, silence, heartbeats, stalled peers
    complaints.py  what peers did wrong: counted always, logged now and then
"""
