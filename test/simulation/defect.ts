/** A planted bug: how it changes the parts of a world. See defects.ts. */
import type { Broker } from '../../packages/server/src/broker/broker.js'
import type { Disk, Log } from '../../packages/server/src/log/log.js'
import type { Transport } from '../../packages/server/src/net/peer.js'
import type { Session } from '../../packages/server/src/session/session.js'
import type { SimulatedDisk } from './disk.js'

export interface Defect {
  readonly name: string
  /** Between the log and the disk. */
  readonly disk?: (disk: Disk) => Disk
  /** Between the broker and the log. */
  readonly log?: (log: Log) => Log
  /** Between a session and its connection. */
  readonly transport?: (transport: Transport) => Transport
  /** Changes a broker before its first use. */
  readonly broker?: (broker: Broker) => void
  readonly session?: (session: Session) => void
  /** Changes all brokers of this process, where there is no seam; returns a function that undoes it. */
  readonly install?: () => () => void
  /** Changes the disk before a broker starts on it. */
  readonly beforeOpen?: (disk: SimulatedDisk) => Promise<void>
}
