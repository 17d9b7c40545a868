/** A planted bug: what it puts between the parts of a world. See defects.ts. */
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
  /** Changes a broker before anybody uses it. */
  readonly broker?: (broker: Broker) => void
  readonly session?: (session: Session) => void
  /** Changes what all brokers of this process do, where no seam is; returns what takes it back. */
  readonly install?: () => () => void
  /** Changes the disk before a broker starts on it. */
  readonly beforeOpen?: (disk: SimulatedDisk) => Promise<void>
}
