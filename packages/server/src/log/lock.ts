/**
 * One broker per data directory. The lock is a Unix socket in the directory, on which its owner listens. The kernel
 * closes the socket however the process ends, and the socket can be reached from all containers under that kernel,
 * although they share no host name, process ids or network namespace. The file `lock` in the same directory names the
 * owner.
 *
 * Brokers under other kernels cannot reach the socket. On a local file system there are no such brokers: a file that
 * names another kernel is left over from an earlier boot. On any other file system the owner touches the file
 * regularly, and a recently touched file is respected. ADR 0022 has the reasons.
 *
 * Invariant: every candidate listens under a visible name before it looks for others. So at least one of two candidates
 * sees the other and gives way.
 */
import { randomBytes } from 'node:crypto'
import { closeSync, constants, openSync } from 'node:fs'
import { open, readFile, readdir, stat, statfs, unlink, utimes } from 'node:fs/promises'
import { connect, createServer } from 'node:net'
import type { Server } from 'node:net'
import { hostname } from 'node:os'
import { join, resolve } from 'node:path'
import { SluiceError } from '@sluice/protocol'
import { makeDirectory } from './disk.js'

export const LOCK_NAME = 'lock'
/**
 * Maximum number of tries to create the file. A stale file is removed before each further try. If every try fails,
 * another broker is starting at the same time.
 */
const TRIES_MAX = 3
/** Maximum size of the file: more than a host name, a boot id and a process id need. */
const LOCK_BYTES_MAX = 1024
/** Interval at which the file is touched if other kernels may read it. */
const TOUCH_MS = 10_000
/** Age at which a file that is not touched any more counts as abandoned. */
const ABANDONED_MS = 60_000
/** If a socket gives no answer within this time, its process counts as an owner that is busy or suspended. */
const ANSWER_MS = 1_000
/** Pause before the other sockets are asked again, while the owner is not decided yet. */
const RETRY_MS = 10

const SOCKET = /^lock\.[0-9a-f]{16}\.socket$/
const OWNER = 'o'
const CANDIDATE = 'c'

/** File systems that only one kernel can mount, by the type that statfs returns. */
const LOCAL_TYPES: ReadonlySet<number> = new Set([
  0xef53, // ext2, ext3, ext4
  0x58465342, // xfs
  0x9123683e, // btrfs
  0xf2f52010, // f2fs
  0x2fc12fc1, // zfs
  0xca451a4e, // bcachefs
  0x01021994, // tmpfs
  0x858458f6, // ramfs
  0x794c7630, // overlay
])

export interface LockOptions {
  /**
   * Takes over a directory that a broker under another kernel may be using. A broker whose socket answers still keeps
   * the directory.
   */
  readonly force?: boolean
  /** Whether only this kernel can mount the file system. Default: derived from its type. */
  readonly isLocal?: boolean
  readonly touchMs?: number
  readonly abandonedMs?: number
  /** Called when another host has taken the directory. The broker must exit. */
  readonly onLost?: (error: SluiceError) => void
}

export interface DirectoryLock {
  /** Releases the directory. A second call does nothing. */
  release(): Promise<void>
}

interface Holder {
  readonly host: string
  /** Boot id of the kernel, which changes with each boot; empty if the system has none. */
  readonly boot: string
  readonly pid: number
}

/** @throws SluiceError DATA_DIR_LOCKED with the directory and the process that uses it */
export async function lockDirectory(path: string, options: LockOptions = {}): Promise<DirectoryLock> {
  const directory = resolve(path)
  await makeDirectory(directory)
  const file = join(directory, LOCK_NAME)
  const me: Holder = { host: hostname(), boot: await bootId(), pid: process.pid }
  const socket = process.platform === 'linux' ? await LockSocket.claim(directory, file) : undefined
  const isLocal =
    options.isLocal ?? (socket?.reachesContainers === true && (await isLocalFileSystem(directory)))
  try {
    await claimFile(directory, file, me, socket, isLocal, options)
  } catch (error) {
    await socket?.close()
    throw error
  }
  socket?.becomeOwner()
  const stopTouching = isLocal ? undefined : keepTouched(directory, file, me, options)
  let released: Promise<void> | undefined
  return {
    release: () => {
      stopTouching?.()
      return (released ??= releaseBoth(file, me, socket))
    },
  }
}

/** The socket of this process, which answers first as candidate and then as owner. */
class LockSocket {
  /**
   * Whether the socket is a file in the directory, which all containers under this kernel see. An abstract socket is
   * seen only in its network namespace.
   */
  readonly reachesContainers: boolean
  readonly #server: Server
  /** Path of the socket; undefined for an abstract one. */
  readonly #file: string | undefined
  readonly #descriptor: number
  #isOwner = false

  private constructor(server: Server, file: string | undefined, descriptor: number) {
    this.#server = server
    this.#file = file
    this.#descriptor = descriptor
    this.reachesContainers = file !== undefined
    server.on('connection', (connection) => {
      connection.on('error', () => {})
      connection.end(this.#isOwner ? OWNER : CANDIDATE)
    })
    server.unref()
  }

  static async claim(directory: string, file: string): Promise<LockSocket> {
    // The path of a socket has at most 107 bytes, so a short path through the descriptor of the directory is used.
    const descriptor = openSync(directory, constants.O_RDONLY | constants.O_DIRECTORY)
    const name = `lock.${randomBytes(8).toString('hex')}.socket`
    const near = `/proc/self/fd/${descriptor}`
    let socket: LockSocket | undefined
    try {
      socket = new LockSocket(await listen(`${near}/${name}`), join(directory, name), descriptor)
    } catch {
      // The file system does not support sockets, or is full. A broker must be able to start on a full disk, so that
      // its queues can be drained.
    }
    try {
      if (socket === undefined) {
        const { dev, ino } = await stat(directory, { bigint: true })
        socket = new LockSocket(
          await listenAlone(`\0sluice-${dev}-${ino}`, directory, file),
          undefined,
          descriptor,
        )
      } else await awaitOwnership(socket, directory, near, name, file)
      return socket
    } catch (error) {
      if (socket === undefined) closeSync(descriptor)
      else await socket.close()
      throw error
    }
  }

  becomeOwner(): void {
    this.#isOwner = true
  }

  async close(): Promise<void> {
    if (this.#file !== undefined) await unlinkIfThere(this.#file)
    await new Promise<void>((done) => {
      this.#server.close(() => done())
    })
    closeSync(this.#descriptor)
  }
}

/**
 * Returns when this process owns the directory, after removing the sockets of processes that no longer exist. A candidate
 * gives way to an owner, and to candidates whose names sort before its own.
 * @throws SluiceError DATA_DIR_LOCKED
 */
async function awaitOwnership(
  socket: LockSocket,
  directory: string,
  near: string,
  name: string,
  file: string,
): Promise<void> {
  const giveUpMs = performance.now() + ANSWER_MS
  for (;;) {
    const others = (await readdir(directory)).filter((other) => SOCKET.test(other) && other !== name)
    const states = await Promise.all(others.map((other) => ask(`${near}/${other}`)))
    const gone = others.filter((_, index) => states[index] === 'gone')
    const wins = others.every((other, index) => {
      const state = states[index]
      return state === 'gone' || state === 'leaving' || (state === 'candidate' && other > name)
    })
    const isOver = states.includes('leaving') && performance.now() > giveUpMs
    if (!wins || isOver) throw locked(directory, await readHolder(file))
    if (gone.length === others.length) {
      for (const other of gone) await unlinkIfThere(join(directory, other))
      // Another process may have removed this socket in the moment before the socket listened, and may have exited
      // since.
      await stat(join(directory, name)).catch(() => {
        throw locked(directory, undefined)
      })
      socket.becomeOwner()
      return
    }
    await new Promise((done) => setTimeout(done, RETRY_MS))
  }
}

type State = 'owner' | 'candidate' | 'leaving' | 'gone'

// Only a refused connection proves that no process listens: a suspended process does not answer but still exists. A
// socket that is being closed drops the connection without an answer; the next try finds that it is gone.
function ask(path: string): Promise<State> {
  return new Promise((done) => {
    const connection = connect({ path })
    const timer = setTimeout(() => finish('owner'), ANSWER_MS)
    const finish = (state: State): void => {
      clearTimeout(timer)
      connection.destroy()
      done(state)
    }
    connection.once('data', (said) => finish(said.toString('latin1') === CANDIDATE ? 'candidate' : 'owner'))
    connection.once('end', () => finish('leaving'))
    connection.once('error', ({ code }: NodeJS.ErrnoException) => {
      if (code === 'ECONNREFUSED' || code === 'ENOENT') finish('gone')
      else finish(code === 'ECONNRESET' || code === 'EPIPE' ? 'leaving' : 'owner')
    })
  })
}

function listen(path: string): Promise<Server> {
  const server = createServer()
  return new Promise((done, fail) => {
    server.once('error', fail)
    server.listen({ path }, () => {
      server.off('error', fail)
      done(server)
    })
  })
}

async function listenAlone(path: string, directory: string, file: string): Promise<Server> {
  try {
    return await listen(path)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw cause
    throw locked(directory, await readHolder(file))
  }
}

/** Writes the file, unless it names a holder that may be alive. */
async function claimFile(
  directory: string,
  file: string,
  me: Holder,
  socket: LockSocket | undefined,
  isLocal: boolean,
  { force = false, abandonedMs = ABANDONED_MS }: LockOptions,
): Promise<void> {
  for (let tries = 0; tries < TRIES_MAX; tries++) {
    try {
      const handle = await open(file, 'wx', 0o600)
      try {
        await handle.writeFile(`${JSON.stringify(me)}\n`)
        await handle.sync()
      } finally {
        await handle.close()
      }
      return
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'ENOSPC' && socket !== undefined) {
        // The socket is enough to exclude other brokers under this kernel.
        await unlinkIfThere(file)
        return
      }
      if (code !== 'EEXIST') throw error
    }
    const holder = await readHolder(file)
    if (holder !== undefined && !force) {
      const state = holderState(holder, me, socket, isLocal)
      if (state === 'alive') throw locked(directory, holder)
      if (state === 'unknown') await refuseUnlessAbandoned(directory, file, holder, abandonedMs)
    }
    await unlinkIfThere(file)
  }
  throw locked(directory, await readHolder(file))
}

/** State of the file's holder, given that no socket answered. */
function holderState(
  holder: Holder,
  me: Holder,
  socket: LockSocket | undefined,
  isLocal: boolean,
): 'gone' | 'alive' | 'unknown' {
  // A holder under this kernel would have answered, and another kernel cannot mount a local file system.
  if (isLocal || (socket?.reachesContainers === true && holder.boot === me.boot)) return 'gone'
  // If the socket does not reach other containers, a process of this host and boot is found by its id.
  if (holder.host !== me.host || holder.boot !== me.boot) return 'unknown'
  return socket === undefined && isAlive(holder.pid) ? 'alive' : 'gone'
}

// Compares times of the file system, because the clocks of two hosts may differ.
async function refuseUnlessAbandoned(
  directory: string,
  file: string,
  holder: Holder,
  abandonedMs: number,
): Promise<void> {
  const probe = join(directory, `lock.${randomBytes(8).toString('hex')}.probe`)
  await (await open(probe, 'wx', 0o600)).close()
  let ageMs: number
  try {
    ageMs = (await stat(probe)).mtimeMs - (await stat(file)).mtimeMs
  } finally {
    await unlinkIfThere(probe)
  }
  if (ageMs >= abandonedMs) return
  const seconds = Math.max(0, Math.round(ageMs / 1_000))
  throw new SluiceError(
    'DATA_DIR_LOCKED',
    `The broker with process id ${holder.pid} on host ${holder.host} uses the data directory ${directory}; it renewed ${file} ${seconds} s ago. The lock expires ${Math.round(abandonedMs / 1_000)} s after the last renewal; --force-lock takes it over now.`,
  )
}

function keepTouched(
  directory: string,
  file: string,
  me: Holder,
  { touchMs = TOUCH_MS, onLost }: LockOptions,
): () => void {
  const touch = async (): Promise<void> => {
    const holder = await readHolder(file)
    if (holder === undefined || isSame(holder, me)) {
      const now = new Date()
      await utimes(file, now, now)
    } else {
      clearInterval(timer)
      onLost?.(locked(directory, holder))
    }
  }
  const timer = setInterval(() => {
    // A failed touch is harmless: the file counts as abandoned only after several failures.
    touch().catch(() => {})
  }, touchMs)
  timer.unref()
  return () => clearInterval(timer)
}

/** The holder that the file names; undefined when the file does not exist or is incomplete. */
async function readHolder(file: string): Promise<Holder | undefined> {
  let text: string
  try {
    text = await readFile(file, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
  if (text.length > LOCK_BYTES_MAX) return undefined
  try {
    const { host, boot, pid } = JSON.parse(text) as Partial<Record<keyof Holder, unknown>>
    if (typeof host === 'string' && typeof boot === 'string' && typeof pid === 'number') {
      return { host, boot, pid }
    }
  } catch {
    // A crash interrupted the write, so the process that wrote the file no longer exists.
  }
  return undefined
}

function isSame(holder: Holder, me: Holder): boolean {
  return holder.pid === me.pid && holder.host === me.host && holder.boot === me.boot
}

function locked(directory: string, holder: Holder | undefined): SluiceError {
  const who =
    holder === undefined
      ? 'Another broker'
      : `The broker with process id ${holder.pid} on host ${holder.host}`
  return new SluiceError('DATA_DIR_LOCKED', `${who} uses the data directory ${directory}.`)
}

function isAlive(pid: number): boolean {
  // Zero and negative numbers would signal a process group.
  if (!Number.isSafeInteger(pid) || pid <= 0) return false
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    // EPERM: the process exists and belongs to another user.
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

async function bootId(): Promise<string> {
  try {
    return (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim()
  } catch {
    return ''
  }
}

async function isLocalFileSystem(directory: string): Promise<boolean> {
  const { type } = await statfs(directory)
  return LOCAL_TYPES.has(type)
}

async function releaseBoth(file: string, me: Holder, socket: LockSocket | undefined): Promise<void> {
  // The file is removed first, while the socket still keeps other brokers from writing their file.
  const holder = await readHolder(file)
  if (holder !== undefined && isSame(holder, me)) await unlinkIfThere(file)
  await socket?.close()
}

async function unlinkIfThere(file: string): Promise<void> {
  try {
    await unlink(file)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  }
}
