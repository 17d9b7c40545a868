/** A broker with few file descriptors refuses connections and keeps descriptors for its log. */
import { connect } from '@sluice/client'
import { OP, encodePreface } from '@sluice/protocol'
import { expect, test } from 'vitest'
import { authFrame, helloFrame } from '../rig/frames.js'
import { Peer } from '../rig/peer.js'
import { BrokerProcess } from '../rig/broker.js'
import { scratchDirectory } from '../rig/scratch.js'
import { until } from '../rig/wait.js'

/** Node opens the modules of the broker at once, each with a descriptor. */
const FILES_MAX = 128

test.runIf(process.platform === 'linux')(
  'a broker accepts as many connections as the limit of open files allows, and delivers messages from disk while all of them are open',
  async () => {
    const scratch = await scratchDirectory('files')
    const broker = new BrokerProcess(
      {
        dataDir: scratch.path,
        port: 0,
        segmentBytes: 1 << 20,
        messageBytesMax: 200 << 10,
        lowFreeBytes: 0,
        memoryBytes: 192 << 20,
      },
      { under: ['sh', '-c', `ulimit -n ${FILES_MAX}; exec "$0" "$@"`] },
    )
    const peers: Peer[] = []
    try {
      const { port } = await broker.ready()
      const sluice = await connect(`sluice://127.0.0.1:${port}`)
      await sluice.queues.ensure('q')
      const body = new Uint8Array(150_000)
      const count = 200
      for (let sent = 0; sent < count; sent += 20)
        await Promise.all(Array.from({ length: 20 }, () => sluice.publish('q', body)))
      let refused = 0
      for (let i = 0; i < FILES_MAX; i++) {
        const peer = await Peer.connect(port)
        peers.push(peer)
        peer.send(encodePreface(), helloFrame(), authFrame())
        const { opcode } = await peer.frame(OP.HELLO_OK, OP.ERROR)
        if (opcode === OP.ERROR) refused++
      }
      // Half of the descriptors are for connections, and the client uses one of them.
      expect(FILES_MAX - refused).toBe(FILES_MAX / 2 - 1)
      const handled = new Set<number>()
      const worker = sluice.consume('q', (message) => void handled.add(message.offset))
      const ended = worker.closed.then(
        () => 'closed',
        (error: { code: string }) => error.code,
      )
      expect(
        await Promise.race([
          until('all to be handled', () => handled.size === count).then(() => 'all'),
          ended,
        ]),
      ).toBe('all')
      await sluice.publish('q', body)
      await sluice.close()
      expect(broker.exit).toBeUndefined()
    } finally {
      await Promise.all(peers.map((peer) => peer.dispose()))
      await broker.dispose()
      await scratch.dispose()
    }
  },
)
