/** A planted bug: the ways in which it can change the parts of a world. See defects.ts. */
import type { Broker } from '../../packages/server/src/broker/broker.js'
import type { Disk, Log } from '../../packages/server/src/log/log.js'
import type { Transport } from '../../packages/server/src/net/peer.js'
import type { Session } from '../../packages/server/src/session/session.js'
import type { SimulatedDisk } from './disk.js'

export interface Defect {
  readonly name: string
  /** Wraps the disk that the log uses. */
  readonly disk?: (disk: Disk) => Disk
  /** Wraps the log that the broker uses. */
  readonly log?: (log: Log) => Log
  /** Wraps the connection that a session uses. */
  readonly transport?: (transport: Transport) => Transport
  /** Changes a broker before its first use. */
  readonly broker?: (broker: Broker) => void
  readonly session?: (session: Session) => void
  /**
   * Changes all brokers of this process, for a bug in code that cannot be wrapped; returns a function that undoes the
   * change.
   */
  readonly install?: () => () => void
  /** Changes the disk before a broker starts on it. */
  readonly beforeOpen?: (disk: SimulatedDisk) => Promise<void>
}
