/**
 * One broker a data directory. The lock is a Unix socket in the directory that its owner listens on. The kernel closes
 * it however the process ends, and it answers across all containers of that kernel, which share neither host name nor
 * process ids nor a network namespace. The file `lock` beside it says who the owner is.
 *
 * Whether a broker runs under another kernel no socket tells. On a local file system there is none: a file that names
 * another kernel was left by an earlier start of the machine. On any other one the owner touches the file now and then,
 * and a file that was touched lately is respected. ADR 0022 has the reasons.
 *
 * Invariant: an owner has listened, under a name that others see, since before it looked for others. Of two that look
 * at each other at least one sees the other and gives way.
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
/** Tries to create the file again after a stale one was removed; more means that another start races with this. */
const TRIES_MAX = 3
/** A host name, a boot id and a process id take less. */
const LOCK_BYTES_MAX = 1024
/** How often the file is touched where a broker of another kernel may look at it, and when it is taken for abandoned. */
const TOUCH_MS = 10_000
const ABANDONED_MS = 60_000
/** A socket that does not say within this time who listens is an owner that is busy or stopped. */
const ANSWER_MS = 1_000
/** Pause before others are looked at again that will give way. */
const LOOK_MS = 10

const SOCKET = /^lock\.[0-9a-f]{16}\.socket$/
const OWNER = 'o'
const CANDIDATE = 'c'

/** File systems that one kernel alone has mounted, by the number that statfs gives. */
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
  /** Takes a directory over that a broker under another kernel may use. One that answers keeps it all the same. */
  readonly force?: boolean
  /** Whether no other kernel has the file system mounted. Default: as its type says. */
  readonly isLocal?: boolean
  readonly touchMs?: number
  readonly abandonedMs?: number
  /** Another host has taken the directory: the broker must end. */
  readonly onLost?: (error: SluiceError) => void
}

export interface DirectoryLock {
  /** Lets others have the directory. A second call does nothing. */
  release(): Promise<void>
}

interface Holder {
  readonly host: string
  /** Of the kernel: changes with each start of the machine; empty where the system does not tell. */
  readonly boot: string
  readonly pid: number
}

/** @throws SluiceError DATA_DIR_LOCKED naming the directory and the process that holds it */
export async function lockDirectory(path: string, options: LockOptions = {}): Promise<DirectoryLock> {
  const directory = resolve(path)
  await makeDirectory(directory)
  const file = join(directory, LOCK_NAME)
  const me: Holder = { host: hostname(), boot: await bootId(), pid: process.pid }
  const seat = process.platform === 'linux' ? await Seat.take(directory, file) : undefined
  const isLocal =
    options.isLocal ?? (seat?.reachesContainers === true && (await isLocalFileSystem(directory)))
  try {
    await claimFile(directory, file, me, seat, isLocal, options)
  } catch (error) {
    await seat?.leave()
    throw error
  }
  seat?.own()
  const stopTouching = isLocal ? undefined : keepTouched(directory, file, me, options)
  let released: Promise<void> | undefined
  return {
    release: () => {
      stopTouching?.()
      return (released ??= releaseBoth(file, me, seat))
    },
  }
}

/** The socket that says that its process is there, as candidate and then as owner. */
class Seat {
  /** A socket in the directory is seen by all containers of this kernel; an abstract one by its network namespace. */
  readonly reachesContainers: boolean
  readonly #server: Server
  /** The socket's own path, or undefined for an abstract one. */
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

  static async take(directory: string, file: string): Promise<Seat> {
    // A socket's path has at most 107 bytes; through the descriptor of its directory it is short.
    const descriptor = openSync(directory, constants.O_RDONLY | constants.O_DIRECTORY)
    const name = `lock.${randomBytes(8).toString('hex')}.socket`
    const near = `/proc/self/fd/${descriptor}`
    let seat: Seat | undefined
    try {
      seat = new Seat(await listen(`${near}/${name}`), join(directory, name), descriptor)
    } catch {
      // The file system has no sockets, or no room for one. A broker must start on a full disk, to drain it.
    }
    try {
      if (seat === undefined) {
        const { dev, ino } = await stat(directory, { bigint: true })
        seat = new Seat(await listenAlone(`\0sluice-${dev}-${ino}`, directory, file), undefined, descriptor)
      } else await settle(seat, directory, near, name, file)
      return seat
    } catch (error) {
      if (seat === undefined) closeSync(descriptor)
      else await seat.leave()
      throw error
    }
  }

  own(): void {
    this.#isOwner = true
  }

  async leave(): Promise<void> {
    if (this.#file !== undefined) await unlinkIfThere(this.#file)
    await new Promise<void>((done) => {
      this.#server.close(() => done())
    })
    closeSync(this.#descriptor)
  }
}

/**
 * Returns when no other process has the directory or wants it, and removes the sockets of those that are gone.
 * Candidates give way to those whose name comes first; an owner that was sure before it saw the other one keeps it.
 * @throws SluiceError DATA_DIR_LOCKED
 */
async function settle(
  seat: Seat,
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
      // Another one may have taken ours for gone in the moment before it listened, and be gone itself by now.
      await stat(join(directory, name)).catch(() => {
        throw locked(directory, undefined)
      })
      seat.own()
      return
    }
    await new Promise((done) => setTimeout(done, LOOK_MS))
  }
}

type State = 'owner' | 'candidate' | 'leaving' | 'gone'

// Only a refusal says that no process listens: one that is stopped does not answer, and is there. A socket that is being
// closed drops a connection without an answer; the next look finds it gone.
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
  seat: Seat | undefined,
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
      if (code === 'ENOSPC' && seat !== undefined) {
        // The socket keeps out the others under this kernel.
        await unlinkIfThere(file)
        return
      }
      if (code !== 'EEXIST') throw error
    }
    const holder = await readHolder(file)
    if (holder !== undefined && !force) {
      const judgement = judge(holder, me, seat, isLocal)
      if (judgement === 'alive') throw locked(directory, holder)
      if (judgement === 'unknown') await refuseUnlessAbandoned(directory, file, holder, abandonedMs)
    }
    await unlinkIfThere(file)
  }
  throw locked(directory, await readHolder(file))
}

/** What the file's holder is, now that no socket answered. */
function judge(
  holder: Holder,
  me: Holder,
  seat: Seat | undefined,
  isLocal: boolean,
): 'gone' | 'alive' | 'unknown' {
  // Under this kernel its socket would have answered; under another one it cannot have a local file system mounted.
  if (isLocal || (seat?.reachesContainers === true && holder.boot === me.boot)) return 'gone'
  // Without such a socket a process of this host and start can be looked for by its id.
  if (holder.host !== me.host || holder.boot !== me.boot) return 'unknown'
  return seat === undefined && isAlive(holder.pid) ? 'alive' : 'gone'
}

// By the clock of the file system: those of two hosts may differ.
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
    `The broker with process id ${holder.pid} on host ${holder.host} uses the data directory ${directory}; it renewed ${file} ${seconds} s ago. The lock is free when that is ${Math.round(abandonedMs / 1_000)} s ago; --force-lock takes it now.`,
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
    // What fails now may work the next time; the file is abandoned only after several of them.
    touch().catch(() => {})
  }, touchMs)
  timer.unref()
  return () => clearInterval(timer)
}

/** Who the file names; undefined when it is not there or was not finished. */
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
    // Cut short by a crash, before its writer did anything else.
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
  // Zero and negative numbers would ask for a whole group of processes.
  if (!Number.isSafeInteger(pid) || pid <= 0) return false
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    // It is there and belongs to another user.
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

async function releaseBoth(file: string, me: Holder, seat: Seat | undefined): Promise<void> {
  // The file goes while the socket still keeps others from writing theirs.
  const holder = await readHolder(file)
  if (holder !== undefined && isSame(holder, me)) await unlinkIfThere(file)
  await seat?.leave()
}

async function unlinkIfThere(file: string): Promise<void> {
  try {
    await unlink(file)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  }
}
